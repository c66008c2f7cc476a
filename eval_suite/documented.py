"""Tables of outcomes in a document, each under the command that makes its run, read back as numbers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from factory.errors import UserError

DIRECTIONS = {"toward the image": "vision", "toward the text": "text"}
METHODS = ("method", "")  # what the column is called that names methods
VALUE = re.compile(r"(\d+(?:\.\d+)?)(?:\s*%)?(?:\s*\((\d+(?:\.\d+)?) to (\d+(?:\.\d+)?)\))?")


@dataclass(frozen=True)
class Number:
    """A printed share in percent: which row of a run and which metric it is, its interval where there is one, and its
    ``decimals``.
    """

    place: str
    method: str
    direction: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    decimals: int


@dataclass
class Table:
    """A table of outcomes, the heading it stands under and the commands last printed before it."""

    place: str
    heading: str
    commands: list[list[str]]
    numbers: list[Number] = field(default_factory=list)
    unread: int = 0


def tables(path: Path) -> list[Table]:
    """The tables of a Markdown file whose columns are toward the image and toward the text. Raises ``UserError`` for a
    file that is not there or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    found: list[Table] = []
    commands: list[list[str]] = []
    heading, inside, at = "", False, 0
    while at < len(lines):
        line = lines[at].strip()
        if line.startswith("```"):
            inside = not inside
            commands = [] if inside else commands
        elif inside and "launch.sh" in line and ".yaml" in line:
            commands.append(shlex.split(line, comments=True))
        elif not inside and line.startswith("#"):
            heading, commands = line.lstrip("# "), []
        elif not inside and line.startswith("|"):
            end = next((i for i in range(at, len(lines)) if not lines[i].strip().startswith("|")), len(lines))
            if table := _table(f"{path}:{at + 1}", heading, commands, [_cells(each) for each in lines[at:end]]):
                found.append(table)
            at = end
            continue
        at += 1
    if not found:
        raise UserError(f"{path}: holds no table of outcomes (columns toward the image, toward the text)")
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _table(place: str, heading: str, commands: list[list[str]], rows: Sequence[Sequence[str]]) -> Table | None:
    heads = [head.lower() for head in rows[0]]
    if heads[0] not in METHODS or not set(DIRECTIONS) & set(heads):
        return None
    table = Table(place, heading, commands)
    file, first = place.rsplit(":", 1)
    for number, row in enumerate(rows[2:], int(first) + 2):
        for column, cell in _asked(heads, row):
            value = VALUE.fullmatch(cell)
            if value is None:
                table.unread += 1
                continue
            low, high = value[2], value[3]
            interval = (float(low), float(high)) if low else None
            decimals = len(value[1].partition(".")[2])
            table.numbers.append(
                Number(f"{file}:{number}", _method(row[0]), *column, float(value[1]), interval, decimals)
            )
    return table


def _asked(heads: Sequence[str], row: Sequence[str]) -> Iterator[tuple[tuple[str, str], str]]:
    """Direction and metric of each cell that says a share, with the cell."""
    direction = ""
    for head, cell in zip(heads, row, strict=False):
        direction = DIRECTIONS.get(head, direction)
        if cell and direction and (head in DIRECTIONS or head == "error"):
            yield (direction, "follow" if head in DIRECTIONS else "error"), cell


def _method(cell: str) -> str:
    """A method's label, without marks and what stands behind it in brackets."""
    bare = re.sub(r"[*`]", "", cell).partition(" (")[0].strip()
    return bare.replace("oracle of ", "oracle:")
