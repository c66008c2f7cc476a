"""What the questions of a harness's own task files are made of: those files, and the data that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from factory import files

LARGE = 64 << 20  # bytes of a file that is told by its size and time of change
DATASET = ("dataset_info.json", "dataset_dict.json", "state.json")  # what a folder of datasets' save_to_disk holds


def made_of(include: str | None) -> dict[str, str] | None:
    """A digest of each file in the folder of task files, and of each that a task file names; None without a folder."""
    if include is None:
        return None
    folder = Path(include).expanduser()
    own = {str(path.relative_to(folder)): path for path in _files(folder)}
    named = {name: Path(name) for path in own.values() if path.suffix in (".yaml", ".yml") for name in _named(path)}
    inside = {str(path): path for place in named.values() if place.is_dir() for path in _files(place)}
    data = {name: path for name, path in named.items() if path.is_file()}
    return {name: _told(path) for name, path in sorted((own | data | inside).items())}


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def _named(path: Path) -> Iterator[str]:
    """Files and saved data sets that a YAML file names; one that is no YAML names none, which its harness will tell."""
    try:
        for event in yaml.parse(files.read_text(path)):
            text = getattr(event, "value", None)
            if text and (os.path.isfile(text) or any(os.path.isfile(os.path.join(text, name)) for name in DATASET)):
                yield text
    except yaml.YAMLError:
        return


def _told(path: Path) -> str:
    about = path.stat()
    return files.digest([about.st_size, about.st_mtime_ns]) if about.st_size > LARGE else files.digest_file(path)
