"""A data set of the Hugging Face hub: fetched once and kept as one Parquet file, which is then read as any other, or
streamed, a row as it comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory import files
from factory.corpus.stream import Row
from factory.errors import UserError
from factory.extras import installed_by
from factory.hub import check_repo, hub_faults

INSTEAD = "name a file under path"


def hub_file(repo: str, split: str, cache: Path, subset: str | None = None, revision: str | None = None) -> Path:
    """The rows of a split of ``repo`` (OWNER/NAME) as a Parquet file under ``cache``, pictures within the rows.

    ``datasets`` reads the repository's files; no code of a repository is run. Raises ``UserError`` in one line where
    the hub has no such data set, subset, split or revision, where it cannot be reached, and without ``datasets``.
    """
    datasets = _library()
    folder = _fetched(repo, revision)
    out = cache / f"hub-{files.digest([repo, folder.name, subset, split])[:16]}.parquet"
    if not out.is_file():
        with _refusals(repo):
            rows = datasets.load_dataset(str(folder), subset, split=split, cache_dir=str(cache / "datasets"))
        part = out.with_suffix(f".{os.getpid()}.part")
        _unread(rows).to_parquet(str(files.make_folder(cache) / part.name))
        part.replace(out)
    return out


class HubFlow:
    """The rows of a split of ``repo`` as they come from the hub, drawn by ``seed`` from a ``buffer`` of them; of a
    picture that is a file of its own the address comes, and the file where its row is read. ``folder`` has the pictures
    that rows name otherwise.

    All of it is of the one commit that ``revision`` stood for at first. Raises ``UserError`` as ``hub_file`` does.
    """

    rows: int | None = None

    def __init__(
        self,
        repo: str,
        split: str,
        folder: Path,
        buffer: int,
        seed: int,
        subset: str | None = None,
        revision: str | None = None,
    ) -> None:
        from huggingface_hub import HfApi

        datasets = _library()
        check_repo(repo, "read")
        with hub_faults(repo, "read", INSTEAD):
            commit = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(repo, revision=revision).sha
        self.title: Path | str = f"{repo} ({split})"
        self.repo, self.folder = repo, folder
        self.state: Any = [repo, commit, subset, split]
        with _refusals(repo):
            rows = datasets.load_dataset(repo, subset, split=split, revision=commit, streaming=True)
        self._rows = rows.decode(False)
        self._drawn = self._rows.shuffle(seed=seed, buffer_size=buffer) if buffer > 1 else self._rows

    def head(self) -> Iterator[Row]:
        with _refusals(self.repo):
            yield from self._rows

    def drawn(self, epoch: int) -> Iterator[tuple[int | None, Row]]:
        self._drawn.set_epoch(epoch)
        with _refusals(self.repo):
            for record in self._drawn:
                yield None, record

    def opened(self, record: Row) -> Row:
        """The row with its pictures' bytes, which are fetched where it has their addresses alone."""
        with _refusals(self.repo):
            return {key: _fetched_picture(value) for key, value in record.items()}


def _fetched_picture(value: Any) -> Any:
    import fsspec

    if isinstance(value, list):
        return [_fetched_picture(each) for each in value]
    if not isinstance(value, dict) or value.get("bytes") is not None or "://" not in str(value.get("path")):
        return value
    with fsspec.open(value["path"], "rb") as file:
        return {**value, "bytes": file.read()}


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"tune.data.hub needs datasets, the extra 'data': {installed_by('data')}") from error
    return datasets


@contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """Tell in one line what ``datasets`` refuses of a repository, and what the way to it does."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, DatasetsError) as error:
        raise UserError(f"tune.data.hub: {repo}: {' '.join(str(error).split())[:200]}") from error


def _fetched(repo: str, revision: str | None) -> Path:
    """The repository's files in the hub's cache, in a folder that its commit names."""
    from huggingface_hub import snapshot_download

    check_repo(repo, "read")
    with hub_faults(repo, "read", INSTEAD):
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
