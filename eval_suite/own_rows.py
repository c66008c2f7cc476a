"""The rows of a file of conflicts, CSV or JSONL, with what is wrong with them told by file and line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_suite.released import numbered
from eval_suite.scorers.answer_words import spelt
from factory import files
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.errors import UserError, did_you_mean, quoted

READ_AS_JSON = (".jsonl", ".ndjson")
ALL = "all"  # the report's name for every task together
LONGEST_NAME = 80  # characters of a task or an id
BESIDE = ("task", "split", "id")  # columns that may be there


@dataclass(frozen=True)
class Columns:
    """How the columns that every row ``needs`` are called: what the first source shows, the second's text, the
    question, and the answers by the first and by the second; ``also`` are other names of them.
    """

    needs: tuple[str, ...]
    also: Mapping[str, str]

    @classmethod
    def of(cls, sources: Sources) -> Columns:
        """The columns of conflicts between two ``sources``; two texts are called by their names, or a and b."""
        if sources.pictured:
            needs = ("image", "context", "question", "answer_vision", "answer_text")
            return cls(needs, {"answer_image": "answer_vision"})
        contexts, answers = ([f"{what}_{name}" for name in sources.names] for what in ("context", "answer"))
        also = zip(("context_a", "context_b", "answer_a", "answer_b"), (*contexts, *answers), strict=True)
        return cls((*contexts, "question", *answers), {other: name for other, name in also if other != name})

    @property
    def known(self) -> tuple[str, ...]:
        return (*self.needs, *BESIDE)

    def named(self, place: str, names: Sequence[str]) -> list[str]:
        """The names of a file's columns as they are known here. Raises ``UserError`` for one that is unknown, lacking
        or twice there.
        """
        known = [self.also.get(name, name) for name in names]
        every = [*self.known, *self.also]
        for name, own in zip(names, known, strict=True):
            if own not in self.known:
                hint = did_you_mean(name, every)
                raise UserError(
                    f"{place}: unknown column {quoted(name)}.{hint} There are: {', '.join(every)}"
                    f"{self._otherwise(name)}"
                )
            if known.count(own) > 1:
                raise UserError(f"{place}: the column {own} is there twice ({', '.join(names)})")
        if lacking := [name for name in self.needs if name not in known]:
            raise UserError(f"{place}: has no {', '.join(lacking)}; every row needs {', '.join(self.needs)}")
        return known

    def _otherwise(self, name: str) -> str:
        """How a column of two texts comes to be known."""
        of_two = self.needs[0] == "image" and name.partition("_")[0] in ("context", "answer")
        return "; for two texts name them: data.sources=[NAME,NAME]" if of_two else ""


@dataclass(frozen=True)
class Entry:
    """One row: where it stands (file:line), what it says, and its split ("" where it names none). Of two texts the
    first is ``context_a``, and no ``image`` is there; ``answer_vision`` is the answer by the first source.
    """

    place: str
    id: str
    task: str
    split: str
    image: str
    context: str
    question: str
    answer_vision: str
    answer_text: str
    context_a: str = ""
    sources: Sources = PICTURE_AND_TEXT

    @property
    def shown(self) -> str:
        """What rows that are asked of the same evidence share: the picture's name, or both texts."""
        return self.image if self.sources.pictured else f"{self.context_a}\0{self.context}"

    @property
    def flaw(self) -> str:
        """Why the row cannot be scored, beyond what every sample is checked for."""
        first, second = self.answer_vision, self.answer_text
        if self.sources.pictured and not self.image:
            return "it names no picture under image"
        if self.context_a and self.context_a == self.context:
            return "its two texts are the same"
        alike = spelt(first) == spelt(second) if spelt(first) else first == second
        return f"its two answers are the same, {quoted(first)} and {quoted(second)}" if first and alike else ""


def read(path: Path, sources: Sources = PICTURE_AND_TEXT) -> list[Entry]:
    """The rows of a file of conflicts between two ``sources``. Raises ``UserError`` with file and line for columns that
    are unknown, lacking or twice there, damaged rows, and ids that two rows share.
    """
    if path.suffix.lower() not in (".csv", *READ_AS_JSON):
        raise UserError(f"{path}: should be a file of rows that ends in .csv or .jsonl")
    columns = Columns.of(sources)
    rows = _rows_of_csv(path, columns) if path.suffix.lower() == ".csv" else _rows_of_json(path, columns)
    places: dict[str, str] = {}
    entries = []
    for line, raw in rows:
        e = _entry(f"{path}:{line}", line, raw, columns, sources)
        if e.id in places:
            raise UserError(f"{e.place}: the id {quoted(e.id)} stands in {places[e.id]} too; give each row its own")
        places[e.id] = e.place
        entries.append(e)
    if not entries:
        raise UserError(f"{path}: holds no rows")
    return entries


def _rows_of_json(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, value in numbered(path):
        place = f"{path}:{line}"
        if not isinstance(value, dict):
            raise UserError(f"{place}: should be one object of named fields a line, and is {quoted(value)}")
        yield line, dict(zip(columns.named(place, list(value)), value.values(), strict=True))


def _rows_of_csv(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows under the first that is not blank, with the lines that they begin in. What parts cells (a comma, a
    semicolon or a tabulator) is what parts the names of columns.
    """
    text = _text(path)
    head = next((line for line in text.splitlines() if line.strip()), "")
    cells = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    names: list[str] = []
    line = 1
    try:
        for row in cells:
            place, begun, line = f"{path}:{line}", line, cells.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = columns.named(place, [cell.strip() for cell in row])
            elif len(row) != len(names):
                raise UserError(
                    f"{place}: has {len(row)} cells, and the file {len(names)} columns; a text with a"
                    " comma stands in double quotes"
                )
            else:
                yield begun, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{line}: damaged from here on: {error}") from error


def _text(path: Path) -> str:
    data = files.read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: is not UTF-8 text; save the file as UTF-8 (a spreadsheet: CSV UTF-8)"
        ) from error


def _entry(place: str, line: int, raw: Mapping[str, Any], columns: Columns, sources: Sources) -> Entry:
    texts = {name: _said(place, name, raw.get(name)) for name in columns.known}
    task, split, id_ = (texts[name] for name in BESIDE)
    task, id_ = task or "conflict", id_ or f"line-{line}"
    for name, text in (("task", task), ("id", id_)):
        if len(text) > LONGEST_NAME or not text.isprintable():
            most = f"at most {LONGEST_NAME} visible characters"
            raise UserError(f"{place}: {name} should be a name of {most}, and is {quoted(text)}")
    if task == ALL:
        raise UserError(f"{place}: no task can be called '{ALL}', which stands for all tasks together")
    first, context, question, *answers = (texts[name] for name in columns.needs)
    image, context_a = (first, "") if sources.pictured else ("", first)
    return Entry(place, id_, task, split, image, context, question, answers[0], answers[1], context_a, sources)


def _said(place: str, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise UserError(f"{place}: {name} should be a text, and is {quoted(value)}")
    return "" if value is None else str(value).strip()
