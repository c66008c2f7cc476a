"""Answers that came from elsewhere: a file of them read, and each set beside what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from eval_suite.released import Row, lines_of, read_json
from eval_suite.scorers.conflict import UNKNOWN
from factory.errors import UserError, quoted

IDS = ("sample", "id", "question_id", "questionId", "qid")
TEXTS = ("prediction", "response", "text", "output", "answer")
LISTS = ("predictions", "answers", "samples", "results", "rows")
SHOWN = 3


@dataclass(frozen=True)
class Told:
    """One sample's answer: which it is, what was said, our ``verdict`` on it (vision, text, flags, other or error) and
    what the rule ``found`` in its own words; where the file has its authors' verdict, that in their words
    (``released``) and as ours (``official``).
    """

    place: str
    sample: str
    task: str
    texts: tuple[str, ...]
    verdict: str
    found: Any
    released: Any = None
    official: str | None = None


def ours(verdict: str) -> str:
    """A verdict as an outcome: one that names neither side is other."""
    return "other" if verdict == UNKNOWN else verdict


@dataclass(frozen=True)
class Left:
    """A row that is left out, and why."""

    place: str
    why: str


@dataclass
class Matched:
    """What became of a file: samples with their answers, rows that are left out, and how many samples have none."""

    told: list[Told] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    unanswered: int = 0


@runtime_checkable
class WithReleasedAnswers(Protocol):
    """A conflict benchmark that reads its authors' files of answers."""

    def released_answer(self, row: Row) -> Told | Left | None:
        """What a row of a released file says; None for a row in another layout."""
        ...


@dataclass(frozen=True)
class Fields:
    """The fields that name a row's sample and hold its answer; None where the usual names are looked for."""

    id: str | None = None
    answer: str | None = None

    def name(self, row: Row) -> str:
        return row.key(_first(row, self.id, IDS, "names what it answers", "--id"))

    def text(self, row: Row) -> str:
        return said(row, _first(row, self.answer, TEXTS, "holds an answer", "--answer"))


def said(row: Row, name: str) -> str:
    """The answer under a name: a text, a number as it is written, nothing as no text, of a list the first."""
    value = row.value(name)
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise row.fault(f"'{name}' should be an answer's text, and is {quoted(value)}")
    return "" if value is None else str(value)


def _first(row: Row, named: str | None, usual: Sequence[str], what: str, option: str) -> str:
    found = named or next((name for name in usual if name in row.values), None)
    if found is None:
        raise UserError(f"{row.place}: no field {what} ({', '.join(usual)}); name it: {option} FIELD")
    return found


def answers_of(path: Path) -> list[Row]:
    """The rows of a file: lines of JSON (.jsonl), a list, a list under a usual name, or answers by the sample's name.
    Raises ``UserError`` for a file that is none of these or holds none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of answers")
    if path.suffix in (".jsonl", ".ndjson"):
        rows = lines_of(path)
    else:
        held = read_json(path)
        if isinstance(held, Mapping):
            held = next((held[name] for name in LISTS if isinstance(held.get(name), list)), held)
        if isinstance(held, Mapping):
            rows = [Row(f"{path}:{name}", _under(name, each)) for name, each in held.items()]
        elif isinstance(held, list):
            rows = [Row(f"{path}:{number}", row) for number, row in enumerate(held, 1)]
        else:
            raise UserError(f"{path}: holds neither rows nor answers by name")
    if not rows:
        raise UserError(f"{path}: holds no answer")
    return rows


def _under(name: str, held: Any) -> dict[str, Any]:
    return {IDS[0]: name, **held} if isinstance(held, Mapping) else {IDS[0]: name, TEXTS[0]: held}


def once_each(named: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Names with their rows. Raises ``UserError`` where two rows answer one question: it would count twice."""
    places: dict[str, str] = {}
    for name, row in named:
        if name in places:
            raise UserError(
                f"{row.place}: answers {quoted(name)}, as {places[name]} does; a file holds one answer to each question"
            )
        places[name] = row.place
        yield name, row


def known(
    named: Iterable[tuple[str, Row]], names: Mapping[str, Any], lost: Callable[[Left], None]
) -> list[tuple[str, Row]]:
    """Those whose name there is; others are ``lost``. Raises ``UserError`` where there is none."""
    kept = []
    for name, row in named:
        if name in names:
            kept.append((name, row))
        else:
            lost(Left(row.place, f"no sample {quoted(name)}"))
    if not kept:
        like = ", ".join(map(quoted, list(names)[:SHOWN]))
        raise UserError(f"no answer is to a question of this benchmark, whose names are like {like}")
    return kept
