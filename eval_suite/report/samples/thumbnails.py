"""Small copies of pictures, each kept once."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image

SIDE = 192  # pixels of the longer side
QUALITY = 70
READERS = 4  # threads: decoding and encoding leave the interpreter's lock
BUNDLE = 8  # pictures of one file
Place = tuple[int, int]
"""Of a picture: the bundle it lies in, and its number there."""
Given = TypeVar("Given")
Made = TypeVar("Made")


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of a picture."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def read(load: Callable[[], Image.Image]) -> list[bytes]:
    """The thumbnail of a picture; nothing where it can no longer be read."""
    try:
        return [thumbnail(load())]
    except OSError:
        return []


def side_by_side(work: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    """``work`` of each, in order, by a few threads."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(work, given))


class Bundles:
    """Pictures as they come, each distinct one once, in bundles of data addresses."""

    def __init__(self) -> None:
        self._places: dict[bytes, Place] = {}

    def place(self, picture: bytes) -> Place:
        """Where a JPEG lies."""
        return self._places.setdefault(picture, divmod(len(self._places), BUNDLE))

    def __iter__(self) -> Iterator[list[str]]:
        """The bundles, each a list of data addresses."""
        pictures = [f"data:image/jpeg;base64,{base64.b64encode(each).decode('ascii')}" for each in self._places]
        return (pictures[i : i + BUNDLE] for i in range(0, len(pictures), BUNDLE))
