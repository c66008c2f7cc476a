"""Checkpoints that are whole or passed over: a manifest, written last, holds the checksum of every file.

    FOLDER/checkpoint-STEP/...            what a trainer keeps, in whatever files and folders
    FOLDER/checkpoint-STEP/manifest.json  {"schema": 2, ..., "files": {NAME: sha256}, "sha256": of all before}

Every file is on the disk before the manifest, and the manifest before an older checkpoint goes: a kill at any moment
leaves a whole one. Checkpoints are data: nothing in them is unpickled beyond tensors and plain values.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from factory import files
from factory.errors import UserError
from factory.terminal import warn

MANIFEST = "manifest.json"
SCHEMA = 2
READERS = 4  # files hashed at once, outside the interpreter's lock


class Damaged(ValueError):
    """What is wrong with a checkpoint."""


def folder_name(step: int) -> str:
    """The folder of the checkpoint that is written after optimiser step ``step``."""
    return f"checkpoint-{step}"


def present(folder: Path) -> list[Path]:
    """Checkpoints in ``folder``, whole or not, the newest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda p: -int(steps[p]))


def seal(checkpoint: Path, about: Mapping[str, Any]) -> None:
    """Flush a checkpoint's files to the disk, then write its manifest, with ``about`` (JSON-able) in it."""
    inside = [path for path in checkpoint.rglob("*") if path != checkpoint / MANIFEST]
    for path in [*inside, checkpoint]:
        files.flush(path)
    manifest = {"schema": SCHEMA, **about, "files": _sums(checkpoint, sorted(p for p in inside if p.is_file()))}
    files.write_json(checkpoint / MANIFEST, manifest | {"sha256": files.digest(manifest)})
    files.flush(checkpoint)
    files.flush(checkpoint.parent)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What ``seal`` wrote. Raises ``Damaged`` where there is nothing or something else."""
    path = checkpoint / MANIFEST
    if checkpoint.is_dir() and not path.exists():
        raise Damaged("its writing was interrupted")
    try:
        data = files.plain_bytes(path)
        manifest = files.decode_json(data)
        told = manifest.pop("sha256")
        whole = told == files.digest(manifest) and data == files.encode_json(manifest | {"sha256": told})
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole or manifest.get("schema") != SCHEMA:
        raise Damaged(f"{MANIFEST} is damaged")
    return manifest


def check(checkpoint: Path) -> None:
    """Raises ``Damaged`` where a file is not the one that was written, and ``UserError`` where one cannot be read."""
    sums = read_manifest(checkpoint)["files"]
    paths = {name: checkpoint / name for name in sums}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise Damaged(f"{missing[0]} is missing")
    if differing := [name for name, found in _sums(checkpoint, list(paths.values())).items() if found != sums[name]]:
        raise Damaged(f"{differing[0]} is damaged: its checksum differs")


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; newer ones are named, with what is wrong with them, and removed."""
    for checkpoint in present(folder):
        try:
            check(checkpoint)
        except Damaged as damage:
            warn(f"{checkpoint}: {damage}; passed over")
            remove(checkpoint)
        else:
            return checkpoint
    return None


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away."""
    with files.explained(checkpoint, "remove"):
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()


@contextmanager
def read_as_data(checkpoint: Path | str) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is read, a refused pickle above all, into one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{checkpoint}: cannot be read as data ({type(error).__name__}: {_first_line(error)}). Remove that folder"
            " to train without it"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def _sums(checkpoint: Path, paths: list[Path]) -> dict[str, str]:
    names = [path.relative_to(checkpoint).as_posix() for path in paths]
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(files.digest_file, paths), strict=True))
