"""The one reader of pictures: training data, benchmarks and whatever else shows a model a file see the same pixels.

A picture is turned as its EXIF orientation says; grey of more than 8 bits is scaled to 8, not clipped; what is
transparent lies over white, as in transformers' ``convert_to_rgb``; of an animated file the first frame is taken.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PROTOCOL = "pictures/1: EXIF orientation, deep grey scaled, alpha over white, first frame"
DRAWN = ("EPS", "WMF")  # programs rather than pixels: Pillow hands them to another program
WHITE = (255, 255, 255, 255)
SAMPLE_FORMAT, UNSIGNED = 339, 1  # a TIFF's tag, and its value where integers have no sign
TOPS = (255, 65535)  # what white is in a file whose numbers say nothing of it
LONGEST, LONGEST_NAME = 120, 240
EDGE = 1 << 15  # bytes at either end of a file: its header and tables, the beginning and the end of its data
DAMAGED = (ArithmeticError, AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error)


class Unreadable(OSError):
    """A picture that cannot be read; the message names it and says why, in one line."""


def load(path: Path) -> Image.Image:
    """The RGB picture in a file. Raises ``Unreadable``."""
    with _told(short_name(path)):
        _check_file(path)
        with _opened(path) as image:
            return rgb(image)


def decode(data: bytes, name: str) -> Image.Image:
    """The RGB picture in the bytes of a file; ``name`` is for messages. Raises ``Unreadable``."""
    with _told(name), _opened(io.BytesIO(data)) as image:
        return rgb(image)


def size(path: Path) -> tuple[int, int]:
    """Width and height that a file's header says; its pixels are not decoded. Raises ``Unreadable``."""
    with _told(short_name(path)):
        _check_file(path)
        with _opened(path) as image:
            return image.size


def size_of(data: bytes, name: str) -> tuple[int, int]:
    """``size`` of the bytes of a file."""
    with _told(name), _opened(io.BytesIO(data)) as image:
        return image.size


def stamp(path: Path) -> str:
    """What tells a file from others however often it is copied or touched: its size, and a digest of its first and last
    ``EDGE`` bytes, which are all of a small file; another picture, or the same saved anew, differs in them. Raises
    ``Unreadable``.
    """
    with _told(short_name(path)):
        _check_file(path)
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(file.read(EDGE))
            if length > EDGE:
                file.seek(max(EDGE, length - EDGE))
                digest.update(file.read(EDGE))
    return f"{length}:{digest.hexdigest()}"


def rgb(image: Image.Image) -> Image.Image:
    """An open picture in RGB."""
    tags = getattr(image, "tag_v2", None)
    unsigned = tags is not None and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
    image = _turned(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image, unsigned)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGED:  # notes of the camera; the pixels are whole all the same
        return image


def _eight_bits(image: Image.Image, unsigned: bool) -> Image.Image:
    """Deep grey as "L", or as "LA" where the file names a value that is transparent.

    16 bits are divided by 257, as PNG's specification has it. Longer integers and floats have no white of their own:
    it is 1 (floats), 255 or 65535, the first that no value passes; where none fits, the largest value, and black the
    smallest.
    """
    values = np.asarray(image)
    if image.mode == "I" and unsigned:
        values = values.view(np.uint32)
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]  # depth maps, for one, are infinite where nothing was met
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    tops = TOPS[1:] if image.mode.startswith("I;16") else (1, *TOPS) if image.mode == "F" else TOPS
    black, white = next(((0.0, top) for top in tops if low >= 0 and high <= top), (low, high))
    values = np.nan_to_num(values, nan=black, posinf=high, neginf=low)
    grey = Image.fromarray(np.rint((values - black) * (255 / ((white - black) or 1))).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _check_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise Unreadable(f"{short_name(path)}: not found") from error
    except (OSError, ValueError) as error:  # a name that is too long, or holds NUL or half a character
        raise Unreadable(
            f"{short_name(path)}: cannot be opened ({getattr(error, 'strerror', None) or error})"
        ) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise Unreadable(f"{short_name(path)}: is {kind}, not a picture")


def short_name(path: Path | str) -> str:
    """A path as messages show it; of a long one, its end."""
    name = str(path)
    name = name if len(name) <= LONGEST_NAME else "…" + name[-LONGEST_NAME:]
    return name if name.isprintable() else repr(name)


@contextmanager
def _opened(file: Path | io.BytesIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as image:
            if image.format in DRAWN:
                raise ValueError(f"{image.format} is a drawing, not a picture; save it as PNG")
            yield image


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever a decoder raises over damaged bytes (Pillow's raise nearly everything) as one line."""
    try:
        yield
    except Unreadable:
        raise
    except PermissionError as error:
        raise Unreadable(f"{name}: permission to read it is denied") from error
    except UnidentifiedImageError as error:
        raise Unreadable(f"{name}: is no picture, or damaged or cut short") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(
            f"{name}: holds more than the {Image.MAX_IMAGE_PIXELS:,} pixels that a picture may; make it smaller"
        ) from error
    except Exception as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())[:LONGEST]
        raise Unreadable(f"{name}: damaged or cut short ({why or type(error).__name__})") from error
