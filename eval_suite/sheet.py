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
ABOVE, LINE = 22, 16  # pixels of a sample's name, and of a line
LINES, MORE_LINES = 5, 6  # of words under a picture, and of a text where there is none


@dataclass(frozen=True)
class Cell:
    """One sample: its name, what gives its picture (None where it has none; ``OSError`` where it cannot be read), what
    is asked, and a line on each answer. A sample of texts alone has no ``picture``; its words take the picture's place.
    """

    name: str
    picture: Callable[[], Image.Image | None] | None
    words: str
    answers: tuple[str, ...] = ()


def write_sheet(path: Path, cells: Sequence[Cell]) -> Path:
    """Draw samples side by side, each with its words under its picture, into a PNG file."""
    across, down = min(ACROSS, len(cells)), -(-len(cells) // ACROSS)
    said = [_said(cell) for cell in cells]
    seen = any(cell.picture for cell in cells)
    below = CAPTION if seen else ABOVE + LINE * (max(map(len, said), default=0) + len(cells[0].answers) + 1)
    high = SIDE * seen + below + GAP
    page = Image.new("RGB", (across * (SIDE + GAP) + GAP, down * high + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, (cell, lines) in enumerate(zip(cells, said, strict=True)):
        x, y = GAP + i % ACROSS * (SIDE + GAP), GAP + i // ACROSS * high
        if cell.picture is not None:
            page.paste(_thumbnail(cell.picture), (x, y))
        top = y + SIDE * seen
        pen.text((x, top + 4), _short(cell.name), fill="dimgrey", font=font)
        pen.text((x, top + ABOVE), "\n".join(lines), fill="black", font=font)
        pen.text((x, top + below - 40), "\n".join(map(_short, cell.answers[:2])), fill=(170, 0, 0), font=font)
    return write_png(path, page)


def _said(cell: Cell) -> list[str]:
    """The lines of a sample's words; where it has no picture, a paragraph for each text."""
    if cell.picture is not None:
        return textwrap.wrap(cell.words, WIDE, max_lines=LINES, placeholder=" …")
    parts = [textwrap.wrap(part, WIDE, max_lines=MORE_LINES, placeholder=" …") for part in cell.words.splitlines()]
    return [line for part in parts for line in (*part, "")]


def write_png(path: Path, picture: Image.Image) -> Path:
    """Raises ``UserError`` where the file cannot be written."""
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    files.write_bytes(path, out.getvalue())
    return path


def _short(text: str) -> str:
    return textwrap.shorten(text, WIDE, placeholder=" …")


def _thumbnail(picture: Callable[[], Image.Image | None]) -> Image.Image:
    """The picture within a square of ``SIDE`` pixels, grey where there is none."""
    square = Image.new("RGB", (SIDE, SIDE), "lightgrey")
    try:
        image = picture()
    except OSError:
        return square
    if image is None:
        return square
    scale = SIDE / max(image.size)
    image = image.convert("RGB").resize([max(1, round(edge * scale)) for edge in image.size])
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return square
