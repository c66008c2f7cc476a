"""The comparison as data: arms by columns, each cell tested against its reference."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from eval_suite.compare.load import Arm, Column, Score
from eval_suite.compare.significance import Test, compare, holm
from eval_suite.report.closed import Gap, gap
from eval_suite.report.rows import is_oracle
from factory.data.sources import in_words
from factory.errors import UserError

AS_THEY_ARE = ("perplexity", "points")  # metrics that are no shares, and are not printed as percentages
PUBLISHED = Path(__file__).with_name("published.yaml")
ORACLE = "oracle"
Between = tuple[str, str]
"""Two methods, the distance between which is closed; ``ORACLE`` is a run's oracle, whatever its whole name."""
TABLES = {"LLaVA Steering": "mores.csv", "PIXEL": "pixel.csv"}


@dataclass
class Cell:
    """A score with what it was tested against: the same run's unsteered model, methods that were named, and the same
    method in the first run; and what it closes of the distance from that unsteered model to the same run's oracle,
    where one was measured.
    """

    score: Score
    against: dict[str, Test] = field(default_factory=dict)
    closed: Gap | None = None

    @property
    def verdict(self) -> str:
        """ "worse" where any test says so, "better" where one does and none says worse."""
        verdicts = [test.verdict for test in self.against.values()]
        return "worse" if "worse" in verdicts else "better" if "better" in verdicts else ""


@dataclass
class Line:
    """One arm of a block; ``rank`` is its mean rank over the columns that every arm of the block has."""

    arm: Arm
    cells: dict[Column, Cell]
    rank: float | None = None


@dataclass(frozen=True)
class Published:
    """A published score and the number of samples it was measured on, where its paper says so."""

    value: float
    n: int | None = None


@dataclass
class Block:
    """Arms toward one direction, side by side; ``published`` are (name, source, entry by column)."""

    direction: str | None
    columns: list[Column]
    lines: list[Line]
    published: list[tuple[str, str, dict[Column, Published]]]


@dataclass
class Table:
    """A comparison: its blocks, every test in them, and what has to be known beside the numbers."""

    blocks: list[Block]
    tests: list[tuple[str, Test]]
    groups: list[str]
    notes: list[str]
    against: tuple[str, ...] = ()
    between: Between | None = None


def build(
    arms: Sequence[Arm], notes: Sequence[str] = (), against: Sequence[str] = (), between: Between | None = None
) -> Table:
    """Blocks by direction. An arm without a direction (the unsteered model on question benchmarks, a saved artefact) is
    in all. Every method is tested ``against`` those that are named, too. What is closed is the distance ``between`` two
    methods, by default from the unsteered model to the oracle. Raises ``UserError`` for a name that there is not.
    """
    methods = list(dict.fromkeys(arm.method for arm in arms))
    known = {*methods, *(ORACLE for method in methods if is_oracle(method))}
    for option, names in (("against", against), ("between", between or ())):
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"--{option} {unknown[0]}: no run has such a method; there are {', '.join(methods)}")
    groups = list(dict.fromkeys(arm.group for arm in arms))
    directions: list[str | None] = [*dict.fromkeys(arm.direction for arm in arms if arm.direction)] or [None]
    blocks = [
        _block([arm for arm in arms if arm.direction in (direction, None)], direction, groups)
        for direction in directions
    ]
    _test(blocks, groups, against)
    for block in blocks:
        _close(block, between)
    tests = [
        (f"{_where(block, line, column)}, against {name}", test)
        for block in blocks
        for line in block.lines
        for column, cell in line.cells.items()
        for name, test in cell.against.items()
    ]
    return Table(blocks, tests, groups, [*notes, *_notes(blocks)], tuple(against), between)


def _notes(blocks: Sequence[Block]) -> list[str]:
    """What a reader must know of the columns' samples."""
    found: dict[str, None] = {}
    for block in blocks:
        made = _made(block.columns, block.lines)
        for column, score in made.items():
            if score.common:
                found[
                    f"{column[0]} {column[1]}: scored and tested on the {score.counts[0]:,} samples that all arms"
                    " share; what only some answered is left out."
                ] = None
        for column, entry in ((c, entry) for *_, values in block.published for c, entry in values.items()):
            if entry.n not in (None, made[column].counts[0]):
                found[
                    f"{column[0]} {column[1]}: published scores are of {entry.n:,} samples, those here of"
                    f" {made[column].counts[0]:,}."
                ] = None
    return list(found)


def _made(columns: Sequence[Column], lines: Sequence[Line]) -> dict[Column, Score]:
    """A score of each column, to tell its protocol and samples by: all of a column share them."""
    return {column: next(line.cells[column].score for line in lines if column in line.cells) for column in columns}


def _block(arms: Sequence[Arm], direction: str | None, groups: Sequence[str]) -> Block:
    merged: dict[tuple[str, str], Line] = {}
    for arm in sorted(
        arms, key=lambda a: (groups.index(a.group), a.method.startswith("oracle:"), a.method != a.unsteered)
    ):
        line = merged.setdefault((arm.group, arm.method), Line(arm, {}))
        line.arm = _together(line.arm, arm)
        line.cells |= {column: Cell(score) for column, score in arm.scores.items() if column[2] in (None, direction)}
    lines = [line for line in merged.values() if line.cells]
    columns = list(dict.fromkeys(column for line in lines for column in line.cells))
    _rank(lines, columns)
    return Block(direction, columns, lines, _published(columns, lines))


def _together(one: Arm, other: Arm) -> Arm:
    """The arm of a line that two arms share: the unsteered model is asked questions without a direction, conflicts with
    one.
    """
    named, unnamed = (other, one) if other.direction else (one, other)
    price = {
        key: getattr(named, key) if getattr(named, key) is not None else getattr(unnamed, key)
        for key in ("parameters", "seconds", "passes", "tokens", "peak_bytes")
    }
    return replace(named, **price)


def _rank(lines: Sequence[Line], columns: Sequence[Column]) -> None:
    lines = [line for line in lines if not line.arm.method.startswith("oracle:")]
    complete = [c for c in columns if all(c in line.cells and line.cells[c].score.main for line in lines)]
    for line in lines if complete and len(lines) > 1 else ():
        places = []
        for column in complete:
            values = [other.cells[column].score.value for other in lines]
            own = line.cells[column].score.value
            places.append(1 + sum(v > own for v in values) + (sum(v == own for v in values) - 1) / 2)
        line.rank = sum(places) / len(places)


def _test(blocks: Sequence[Block], groups: Sequence[str], against: Sequence[str]) -> None:
    pending: list[tuple[Cell, str, Test]] = []
    for block in blocks:
        by_key = {(line.arm.group, line.arm.method): line for line in block.lines}
        for (group, method), line in by_key.items():
            unsteered = line.arm.unsteered
            references = {name: by_key.get((group, name)) for name in (unsteered, *against) if name != method}
            if group != groups[0]:
                references[groups[0]] = _counterpart(line, block, groups[0])
            for name, other in references.items():
                if other is None:
                    continue
                for column, cell in line.cells.items():
                    if column in other.cells and (
                        test := compare(cell.score.samples, other.cells[column].score.samples, cell.score.units)
                    ):
                        pending.append((cell, name, test))
    for (cell, name, _), test in zip(pending, holm([test for *_, test in pending]), strict=True):
        cell.against[name] = test


def _close(block: Block, between: Between | None) -> None:
    """Of a run with several oracles the first counts."""
    at = {(line.arm.group, line.arm.method): line for line in reversed(block.lines)}
    at |= {(group, ORACLE): line for (group, method), line in at.items() if is_oracle(method)}
    for line in block.lines:
        arm = line.arm
        ends = between or (arm.unsteered, ORACLE)
        start, end = (at.get((arm.group, name)) for name in ends)
        if start is None or end is None or is_oracle(arm.method) or line in (start, end) or arm.method == arm.unsteered:
            continue
        for column, cell in line.cells.items():
            if column in start.cells and column in end.cells and cell.score.main:
                samples = (each.cells[column].score.samples for each in (line, start, end))
                cell.closed = gap(*samples)


def _counterpart(line: Line, block: Block, group: str) -> Line | None:
    """The line of a group that has the same method; of the model as it is whatever it is called there."""
    arm, there = line.arm, [other for other in block.lines if other.arm.group == group]
    if arm.method == arm.unsteered:
        return next((other for other in there if other.arm.method == other.arm.unsteered), None)
    return next((other for other in there if other.arm.method == arm.method), None)


def _where(block: Block, line: Line, column: Column) -> str:
    toward = f" ({block.direction})" if block.direction else ""
    return f"{line.arm.group}: {line.arm.method}{toward} on {column[0]}"


@cache
def of_tables() -> list[dict[str, str]]:
    """Numbers of a paper's table, shown beside the run of the recipe that repeats it: run, table, method, label and
    metric of the column, protocol (a pattern), value in percent, n where it is told, and the paper.
    """
    folder = Path(__file__).parents[1] / "published"
    texts = {paper: (folder / name).read_text(encoding="utf-8") for paper, name in TABLES.items()}
    return [{**row, "paper": paper} for paper, text in texts.items() for row in csv.DictReader(text.splitlines())]


def _published(columns: Sequence[Column], lines: Sequence[Line]) -> list[tuple[str, str, dict[Column, Published]]]:
    """Published scores whose protocol and metric are those of a column, and those of the very tables that runs here
    repeat.
    """
    made = _made(columns, lines)
    found: dict[tuple[str, str], dict[Column, Published]] = {}
    known: list[dict[str, Any]] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    for entry in known:
        for column in columns:
            wanted = (entry["protocol"], entry["metric"], entry.get("direction"))
            if wanted == (made[column].protocol, column[1], column[2]):
                found.setdefault((entry["name"], entry["source"]), {})[column] = Published(entry["value"], entry["n"])
    runs = {line.arm.recipe for line in lines}
    for row in (row for row in of_tables() if row["run"] in runs):
        for column in columns:
            alike = fnmatchcase(made[column].protocol, row["protocol"])  # whatever the version of a harness
            if (row["label"], row["metric"]) == column[:2] and alike:
                n = int(row["n"]) if row.get("n") else None
                found.setdefault((row["method"], f"{row['paper']}, {row['table']}"), {})[column] = Published(
                    float(row["value"]) / 100, n
                )
    return [(name, source, values) for (name, source), values in found.items()]


def heading(column: Column) -> str:
    return f"{column[0]} {column[1]}"


def title(block: Block) -> str:
    return f"Towards {in_words(block.direction)}" if block.direction else "All arms"


def label(line: Line, table: Table) -> str:
    return line.arm.method if len(table.groups) == 1 else f"{line.arm.group}: {line.arm.method}"
