"""Text from files as a terminal and a spreadsheet may have it: nothing in it commands either of them."""

from __future__ import annotations

import csv
import io
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from factory.errors import UserError

KEPT = "\n\t"
UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of surrogate pairs, separators that break a line
TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # marks of direction
FORMULA = re.compile(r"[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")  # what makes a cell one; full-width forms count
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|nan)")


def shown(text: str) -> str:
    """``text`` with whatever a terminal would obey, or could not show, written as an escape."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(_escaped(c) if _commands(c) else c for c in text)


def say(*words: Any, file: Any = None) -> None:
    """``print``, made safe."""
    print(*(shown(str(word)) for word in words), file=file, flush=True)


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Let a mistake in what was asked for end the program as the command line does: its line, and exit code 2."""
    try:
        yield
    except UserError as error:
        say(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def number_of(n: int, what: str) -> str:
    """A count and what is counted, in one or in many: "1 sample", "2,000 samples"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def cell(value: Any) -> Any:
    """A value as a cell of a CSV file: a text that a spreadsheet would compute gets a quote in front, as OWASP has it;
    numbers stay."""
    if not isinstance(value, str) or not FORMULA.match(value) or NUMBER.fullmatch(value):
        return value
    return "'" + value


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as a CSV file."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([cell(value) for value in row] for row in rows)
    return out.getvalue()


def _commands(c: str) -> bool:
    return c not in KEPT and (unicodedata.category(c) in UNSEEN or c in TURNING)


def _escaped(c: str) -> str:
    return ascii(c)[1:-1]
