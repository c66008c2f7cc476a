"""A data set of the Hugging Face hub, fetched once and kept as one Parquet file, which is then read as any other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from factory import files
from factory.errors import UserError
from factory.hub import check_repo, hub_faults


def hub_file(repo: str, split: str, cache: Path, subset: str | None = None, revision: str | None = None) -> Path:
    """The rows of a split of ``repo`` (OWNER/NAME) as a Parquet file under ``cache``, pictures within the rows.

    ``datasets`` reads the repository's files; no code of a repository is run. Raises ``UserError`` in one line where
    the hub has no such data set, subset, split or revision, where it cannot be reached, and without ``datasets``.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError("tune.data.hub needs datasets; pip install 'steering-factory[data]'") from error
    folder = _fetched(repo, revision)
    out = cache / f"hub-{files.digest([repo, folder.name, subset, split])[:16]}.parquet"
    if not out.is_file():
        try:
            rows = datasets.load_dataset(str(folder), subset, split=split, cache_dir=str(cache / "datasets"))
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"tune.data.hub: {repo}: {' '.join(str(error).split())[:200]}") from error
        part = out.with_suffix(f".{os.getpid()}.part")
        _unread(rows).to_parquet(str(files.make_folder(cache) / part.name))
        part.replace(out)
    return out


def _fetched(repo: str, revision: str | None) -> Path:
    """The repository's files in the hub's cache, in a folder that its commit names."""
    from huggingface_hub import snapshot_download

    check_repo(repo, "read")
    with hub_faults(repo, "read", "name a file under path"):
        endpoint = os.environ.get("HF_ENDPOINT")
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, endpoint=endpoint))


def _unread(rows: Any) -> Any:
    """The rows with their pictures as the bytes of their files."""
    from datasets import Image

    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            rows = rows.cast_column(name, type(feature)(Image(decode=False)))
    return rows
