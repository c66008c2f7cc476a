"""A sheet of samples as a picture: what is shown and asked, and the answers, side by side."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from factory import files

SHOWN, ACROSS, WIDE = 12, 4, 36  # samples on a sheet and in a row, characters of a line
SIDE, CAPTION, GAP = 240, 165, 16  # pixels


@dataclass(frozen=True)
class Cell:
    """One sample: its name, what gives its picture (None where it has none; ``OSError`` where it cannot be read), what
    is asked, and a line on each answer.
    """

    name: str
    picture: Callable[[], Image.Image | None]
    words: str
    answers: tuple[str, ...] = ()


def write_sheet(path: Path, cells: Sequence[Cell]) -> Path:
    """Draw samples side by side, each with its words under its picture, into a PNG file."""
    across, down = min(ACROSS, len(cells)), -(-len(cells) // ACROSS)
    page = Image.new("RGB", (across * (SIDE + GAP) + GAP, down * (SIDE + CAPTION + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, cell in enumerate(cells):
        x, y = GAP + i % ACROSS * (SIDE + GAP), GAP + i // ACROSS * (SIDE + CAPTION + GAP)
        page.paste(_thumbnail(cell), (x, y))
        said = textwrap.wrap(cell.words, WIDE, max_lines=5, placeholder=" …")
        pen.text((x, y + SIDE + 4), _short(cell.name), fill="dimgrey", font=font)
        pen.text((x, y + SIDE + 22), "\n".join(said), fill="black", font=font)
        pen.text((x, y + SIDE + CAPTION - 40), "\n".join(map(_short, cell.answers[:2])), fill=(170, 0, 0), font=font)
    return write_png(path, page)


def write_png(path: Path, picture: Image.Image) -> Path:
    """Raises ``UserError`` where the file cannot be written."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    files.write_bytes(path, out.getvalue())
    return path


def _short(text: str) -> str:
    return textwrap.shorten(text, WIDE, placeholder=" …")


def _thumbnail(cell: Cell) -> Image.Image:
    """The picture within a square of ``SIDE`` pixels, grey where there is none."""
    square = Image.new("RGB", (SIDE, SIDE), "lightgrey")
    try:
        image = cell.picture()
    except OSError:
        return square
    if image is None:
        return square
    scale = SIDE / max(image.size)
    image = image.convert("RGB").resize([max(1, round(edge * scale)) for edge in image.size])
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return square
