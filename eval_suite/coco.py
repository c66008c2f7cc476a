"""COCO's pictures by their ids, wherever the folders of its releases lie."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from os.path import isfile
from pathlib import Path

from PIL import Image

from factory.data import pictures
from factory.errors import quoted

PLACES = (  # COCO 2014's own folders; everything in one folder; COCO 2017, which renamed the same pictures
    "train2014/COCO_train2014_{}.jpg",
    "val2014/COCO_val2014_{}.jpg",
    "COCO_train2014_{}.jpg",
    "COCO_val2014_{}.jpg",
    "train2017/{}.jpg",
    "val2017/{}.jpg",
    "{}.jpg",
)


def find(folder: Path, image_id: str) -> Path | None:
    """The picture's file, None where there is none; an id that is no part of a file's name has none."""
    if not re.fullmatch(r"[\w.-]{1,100}", image_id):
        return None
    return next((path for place in PLACES if isfile(path := folder / place.format(image_id))), None)


def picture(folder: Path, image_id: str) -> Image.Image:
    """The RGB picture. Raises ``OSError`` where it is not there or cannot be read."""
    path = find(folder, image_id)
    if path is None:
        raise FileNotFoundError(f"no picture {quoted(image_id)} in {folder}")
    try:
        return pictures.load(path)
    except pictures.Unreadable as error:
        raise OSError(f"{error}; download it again") from error


def lacking(name: str, folder: Path, found: Mapping[str, Path | None], do: str) -> str:
    """One line about the pictures that a benchmark does not find: how many of how many, where, which, and what to
    do.
    """
    there = Counter(path.parent.name + "/" for path in found.values() if path)
    lost = [i for i, path in found.items() if path is None]
    counts = ", ".join(f"{place} {n:,}" for place, n in there.items()) or "none"
    where = f"{folder} ({counts if folder.is_dir() else 'no such folder'})"
    first = ", ".join(map(brief, lost[:3])) + ", …" * (len(lost) > 3)
    return f"{name} pictures: {len(found) - len(lost):,} of {len(found):,} found in {where}; lacking {first}. {do}"


def brief(image_id: str) -> str:
    """A picture's number as messages name it; what is no number is cut and quoted."""
    return image_id if image_id.isalnum() and len(image_id) <= 20 else quoted(image_id, 20)
