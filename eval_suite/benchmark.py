"""The contract of a question-and-answer benchmark: released files to prompts, answers to scores with confidence
intervals.

A metric is a function of sums over independent units (a unit is what the benchmark's authors drew: a question, a
picture with all its questions), so one vectorised bootstrap over units serves accuracy, F1 and all-or-nothing groups
alike.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from eval_suite.scorers.reading import Reading
from eval_suite.sheet import SHOWN, Cell, write_sheet
from factory.benchmark import Item, Questions, Record
from factory.errors import UserError
from factory.run.samples import thin
from factory.statistics.intervals import bootstrap_sums, wilson

__all__ = ["LETTER", "SHORT", "AnswerBenchmark", "Item", "Record", "Sums", "divide", "prompt_hash"]

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


class Sums:
    """Named sums, each a number or an array over resamples; one that nobody added to is 0."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name, 0.0)

    def ratio(self, above: str, below: str) -> Any:
        return divide(self[above], self[below])


def divide(above: Any, below: Any) -> Any:
    """The quotient, 0 where ``below`` is 0 (a resample may miss every positive)."""
    return np.divide(
        above, below, out=np.zeros(np.broadcast_shapes(np.shape(above), np.shape(below))), where=np.asarray(below) != 0
    )


def _cell(item: Item, about: Sequence[tuple[str, str]]) -> Cell:
    try:
        prompt = item.prompt()
    except OSError as error:
        return Cell(item.id, lambda: None, f"its picture cannot be read: {error}")
    words = " ".join(segment.text for segment in prompt.segments if segment.text)
    return Cell(
        item.id, lambda: next(iter(prompt.images), None), words, tuple(f"{title}: {text}" for title, text in about)
    )


class AnswerBenchmark(Questions):
    """Base of the benchmarks that ask questions and score answers.

    A subclass gives ``profile`` (its named prompt protocol), ``scorer`` (rule and version), ``main`` (the metric that
    stands for it, more being better), ``beside`` (metrics that a comparison shows beside it), ``items()`` and
    ``read(item, text)``. ``shares`` names the metrics that are plain shares of independent right answers and get a
    Wilson interval; every other interval is a bootstrap over units, and ``without_interval`` names metrics of which no
    unit has a part.
    """

    name: ClassVar[str]
    profile: ClassVar[str] = "llava-1.5"
    main: str = "accuracy"
    beside: tuple[str, ...] = ()
    shares: ClassVar[dict[str, tuple[str, str]]] = {"accuracy": ("right", "n")}
    without_interval: ClassVar[tuple[str, ...]] = ()

    @property
    def new_tokens(self) -> int:
        return 128

    def pictures(self, folder: Path) -> list[tuple[str, Path]]:
        """A sheet of some questions: the first picture of each, its texts, and what is right."""
        items = self.questions()
        cells = [_cell(item, self.about(item)) for item in thin(items, SHOWN)]
        title = f"{self.name}: {len(cells)} of {len(items)} questions"
        return [(title, write_sheet(folder / f"{self.name}.png", cells))] if cells else []

    @property
    def protocol(self) -> str:
        """What a number must share with another to stand beside it: benchmark, split and prompt profile."""
        return f"{self.name}/{self.split}/{self.profile}"

    @property
    def split(self) -> str:
        return getattr(self.params, "split", "test")

    def items(self) -> Sequence[Item]:
        """The questions, in the order of the released file. Raises ``UserError`` where files are missing or
        malformed.
        """
        raise TypeError(f"{type(self).__name__} must define items()")

    def questions(self, limit: int | None = None) -> list[Item]:
        """The items that are asked: all, or about ``limit`` of them by whole units. Raises ``UserError`` where there is
        none, or where two share an id (one answer would then count for both, or not, as the batches fall).
        """
        items = self.items()
        if not items:
            raise UserError(f"benchmark {self.name}: no question in split {self.split}")
        for name, times in Counter(item.id for item in items).items():
            if times > 1:
                raise UserError(f"benchmark {self.name}: question {name} occurs {times} times; is a file there twice?")
        return thinned(items, limit)

    def read(self, item: Item, text: str) -> Reading:
        """What the rule makes of an answer."""
        raise TypeError(f"{type(self).__name__} must define read(item, text)")

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        """What one unit adds to the sums; for rules by which a group is right only as a whole this is overridden."""
        sums: dict[str, float] = defaultdict(float)
        for member in members:
            for name, value in member["sums"].items():
                sums[name] += value
        return sums

    def metrics(self, sums: Sums) -> dict[str, Any]:
        """Metrics from sums, in [0, 1] unless the benchmark's own unit is another; arrays where the sums are."""
        return {"accuracy": sums.ratio("right", "n")}

    def record(self, item: Item, text: str) -> Record:
        """One prediction, scored."""
        r = self.read(item, text)
        return {
            "sample": item.id,
            "unit": item.unit or item.id,
            "tasks": list(item.tasks),
            **item.facts,
            "parsed": r.parsed,
            "sums": dict(r.sums),
            "value": r.value,
            "failed": r.failed,
            "guessed": r.guessed,
            **({"again": True} if r.again else {}),
        }

    def rows(self, records: Sequence[Record], draws: int = 1000, **context: Any) -> list[dict[str, Any]]:
        """Rows of results.json: one for all records, then one per task; ``context`` is added to each."""
        about = {
            "benchmark": self.name,
            "split": self.split,
            "protocol": self.protocol,
            "scorer": self.scorer,
            "main": self.main,
            "beside": list(self.beside),
            "prompt_hash": prompt_hash(records),
        }
        groups: dict[str, list[Record]] = {"all": list(records)}
        for record in records:
            for task in record["tasks"]:
                groups.setdefault(task, []).append(record)
        return [
            {"task": task, **self._measured(members, draws), **about, **context} for task, members in groups.items()
        ]

    def _measured(self, members: Sequence[Record], draws: int) -> dict[str, Any]:
        n = len(members)
        shares = {
            "n": n,
            "parse_failure_rate": sum(m["failed"] for m in members) / n,
            "guess_share": sum(m["guessed"] for m in members) / n,
            "empty_share": sum(not m["text"].strip() for m in members) / n,
        }
        if self.unscorable():
            return {"metrics": {}, "ci": {}, "not_scored": self.unscorable(), **shares}
        units: dict[str, list[Record]] = defaultdict(list)
        for member in members:
            units[member["unit"]].append(member)
        table = [self.unit_sums(group) for group in units.values()]
        names = sorted({name for sums in table for name in sums})
        matrix = np.array([[sums.get(name, 0.0) for name in names] for sums in table])
        total = Sums(dict(zip(names, matrix.sum(0), strict=True)))
        values = {metric: float(value) for metric, value in self.metrics(total).items()}
        spread = (
            bootstrap_sums(matrix, lambda m: self.metrics(Sums(dict(zip(names, m.T, strict=True)))), draws)
            if draws
            else {}
        )
        for metric, (above, below) in self.shares.items():
            if total[below]:
                spread[metric] = wilson(float(total[above]), round(float(total[below])))
        return {
            "metrics": values,
            "ci": {
                metric: list(spread[metric])
                for metric in values
                if metric in spread and metric not in self.without_interval
            },
            **shares,
        }


def prompt_hash(records: Iterable[Record]) -> str:
    """Hash of the set of prompts that were asked."""
    return hashlib.sha256(" ".join(sorted({r["prompt_digest"] for r in records})).encode()).hexdigest()[:16]


def thinned(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Whole units, evenly spread, of at most ``limit`` questions together (the first alone where none is so small).

    A part of a unit is another question: of MME's two on each picture the first is always the one that says yes, and of
    POPE's six every second.
    """
    if limit is None or limit >= len(items):
        return list(items)
    units: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        units[item.kept_with or item.unit or item.id].append(item)
    groups = list(units.values())
    for n in range(min(limit, len(groups)), 0, -1):
        chosen = [item for group in thin(groups, n) for item in group]
        if len(chosen) <= limit or n == 1:
            break
    return chosen
