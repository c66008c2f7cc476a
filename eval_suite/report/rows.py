"""Reading results.json rows: which tables there are, which strength was chosen, and one cell at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from factory.data.sources import in_words
from factory.run.labels import CURVE

TASKS = {
    "activity_recognition": "Act",
    "attribute": "Attr",
    "color": "Color",
    "counting": "Count",
    "object_recognition": "Obj",
    "positional_reasoning": "Pos",
    "sentiment_understanding": "Sent",
    "sport_recognition": "Sport",
}
TOTAL = "all"
BEFORE = {"unsteered": "none", "reference": "l2s"}  # labels of results whose run entry names none: all had these
ORACLE = "oracle:"
DASH = "—"


def target(direction: str | None, nothing: str = DASH) -> str:
    """What a direction leads to: "the image", "the memo"; ``nothing`` where there is none."""
    return in_words(direction) if direction else nothing


def labels(results: Mapping) -> tuple[str, str | None]:
    """Of a results file the labels of the model as it is and of the method that others are held against, if any."""
    run = results.get("run") or {}
    unsteered, reference = (run.get(key, before) for key, before in BEFORE.items())
    return str(unsteered), None if reference is None else str(reference)


def is_oracle(method: str) -> bool:
    """Whether the method picks strengths with the labels, so that its row is an upper bound."""
    return method.startswith(ORACLE)


def short_task(task: str) -> str:
    """Column label of a task: the usual short name, or the name itself where the task is not one of MC²'s."""
    return TASKS.get(task, "Total" if task == TOTAL else task.replace("_", " ").capitalize())


def percent(value: float | None, signed: bool = False) -> str:
    """A share as a percentage with one decimal; an em dash where it was not measured."""
    if value is None or not math.isfinite(value):
        return DASH
    number = round(100 * value, 1) + 0.0  # + 0.0 turns -0.0 into 0.0
    return (f"{number:+.1f}" if signed and number else f"{number:.1f}").replace("-", "−")


def strength_text(strength: Any) -> str:
    """A strength as it is printed; an em dash where the method has none."""
    if strength is None:
        return DASH
    return f"{strength:g}" if isinstance(strength, (int, float)) else str(strength)


@dataclass(frozen=True)
class Cell:
    """One measured share with its interval (None where no interval was stored) and sample count."""

    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True)
class Choice:
    """The strength a method is reported at; `chosen` is False where there was only one to report."""

    strength: Any
    chosen: bool


class Predictions:
    """Per-sample records, indexed once: a full run has hundreds of thousands and is asked for many slices."""

    def __init__(self, records: Iterable[Mapping]):
        self.records = list(records)
        self._slices: dict[tuple, list[Mapping]] = {}
        for p in self.records:
            key = (p.get("split"), p.get("direction"), p["method"], p.get("strength"))
            self._slices.setdefault(key, []).append(p)

    def of(self, split: str | None, direction: str | None, method: str, strength: Any) -> list[Mapping]:
        return self._slices.get((split, direction, method, strength), [])


class Group:
    """All rows of one benchmark under one protocol, scorer and seed: what one table may put side by side.

    ``unsteered`` and ``reference`` are labels, as by ``labels``; ``controls`` the labels of random controls by method.
    """

    def __init__(
        self,
        benchmark: str,
        protocol: str | None,
        scorer: str | None,
        seed: int | None,
        rows: list[Mapping],
        unsteered: str,
        reference: str | None,
        controls: Mapping[str, str] | None = None,
    ):
        self.controls = controls or {}
        self.benchmark, self.protocol, self.scorer, self.seed, self.rows = benchmark, protocol, scorer, seed, rows
        self.unsteered, self.reference = unsteered, reference
        self._cells = {
            (r.get("split"), r.get("direction"), r["method"], r.get("strength"), r.get("task", TOTAL)): r for r in rows
        }

    @property
    def splits(self) -> list[str | None]:
        return _unique(r.get("split") for r in self.rows)

    @property
    def scored_split(self) -> str | None:
        """The split tables report: test where it was measured, else the first there is."""
        return "test" if "test" in self.splits else self.splits[0]

    @property
    def curve_split(self) -> str | None:
        """The split that curves over strengths are of: the scored one, else a share of it, else dev; None where nothing
        was scored at several strengths.
        """
        return next((split for split in (self.scored_split, CURVE, "dev") if self.swept(split)), None)

    def swept(self, split: str | None) -> list[tuple[str | None, str]]:
        """Directions and methods that were scored at several strengths on a split, oracles left out."""
        pairs = [(d, m) for d in self.directions for m in self.methods(d) if not is_oracle(m)]
        return [(d, m) for d, m in pairs if len(self.numbers(d, m, split)) > 1]

    def numbers(self, direction: str | None, method: str, split: str | None) -> list[float]:
        """The strengths of a method on a split that are numbers."""
        return [s for s in self.strengths(direction, method, split) if isinstance(s, (int, float))]

    def samples_of(self, split: str | None) -> str:
        """A split's samples in words, for captions; of a share, how many of how many."""
        if split != CURVE:
            return f"{split} samples"
        some, every = (
            max((r.get("n") or 0 for r in self.rows if r.get("split") == s), default=0) for s in (CURVE, "test")
        )
        return f"{some} of the {every} test samples"

    @property
    def directions(self) -> list[str | None]:
        return _unique(r.get("direction") for r in self.rows)

    @property
    def tasks(self) -> list[str]:
        """Measured tasks without the total, the MC² tasks first and in their usual order."""
        present = _unique(r.get("task", TOTAL) for r in self.rows)
        known = [t for t in TASKS if t in present]
        return known + [t for t in present if t not in TASKS and t != TOTAL]

    def methods(self, direction: str | None = None, every: bool = False) -> list[str]:
        """Methods of a direction (of all with `every`): the unsteered model first, oracles last."""
        names = _unique(r["method"] for r in self.rows if every or r.get("direction") == direction)
        return sorted(names, key=lambda name: (is_oracle(name), name != self.unsteered))

    def strengths(self, direction: str | None, method: str, split: str | None) -> list[Any]:
        found = _unique(
            r.get("strength")
            for r in self.rows
            if r.get("direction") == direction and r["method"] == method and r.get("split") == split
        )
        return sorted(found, key=lambda s: (not isinstance(s, (int, float)), s if isinstance(s, (int, float)) else 0))

    def choice(self, direction: str | None, method: str) -> Choice | None:
        """The reported strength of a method, or None where several were scored and none (or several) chosen."""
        flagged = _unique(
            r.get("strength")
            for r in self.rows
            if r.get("chosen") and r.get("direction") == direction and r["method"] == method
        )
        if len(flagged) == 1:
            return Choice(flagged[0], chosen=flagged[0] is not None)
        present = self.strengths(direction, method, self.scored_split)
        return Choice(present[0], chosen=False) if not flagged and len(present) == 1 else None

    def variant(self, direction: str | None, method: str) -> str:
        """What dev data decided beside the strength (a beta); empty where the method leaves nothing else to it."""
        choice = self.choice(direction, method)
        row = choice and self.row(direction, method, TOTAL, choice.strength, self.scored_split)
        return str((row or {}).get("variant") or "")

    def row(self, direction: str | None, method: str, task: str, strength: Any, split: str | None) -> Mapping | None:
        return self._cells.get((split, direction, method, strength, task))

    def cell(
        self, direction: str | None, method: str, task: str, metric: str, strength: Any, split: str | None
    ) -> Cell | None:
        """One share, or None where it was not measured."""
        row = self.row(direction, method, task, strength, split)
        value = (row or {}).get("metrics", {}).get(metric)
        if row is None or value is None or not math.isfinite(value):
            return None
        low, high = (row.get("ci") or {}).get(metric) or (None, None)
        return Cell(float(value), low, high, row.get("n"))

    def reported(self, direction: str | None, method: str, metric: str = "follow", task: str = TOTAL) -> Cell | None:
        """The share on the scored split at the reported strength."""
        choice = self.choice(direction, method)
        return self.cell(direction, method, task, metric, choice.strength, self.scored_split) if choice else None

    def predictions(
        self, predictions: Predictions, direction: str | None, method: str, strength: Any, split: str | None
    ) -> list[Mapping]:
        """The per-sample records behind one reported total."""
        own = {"benchmark": self.benchmark, "protocol": self.protocol, "scorer": self.scorer, "seed": self.seed}
        records = predictions.of(split, direction, method, strength)
        return [p for p in records if all(p.get(k, v) == v for k, v in own.items())]

    def title(self) -> str:
        seed = None if self.seed is None else f"seed {self.seed}"
        parts = [self.benchmark, self.protocol, self.scorer, seed]
        return ", ".join(str(part) for part in parts if part)


def groups(results: Mapping) -> list[Group]:
    """The modality-conflict tables in a results file, one per benchmark, protocol, scorer and seed."""
    found: dict[tuple[str, Any, Any, Any], list[Mapping]] = {}
    for row in results.get("rows", []):
        if "follow" in row.get("metrics", {}):
            key = (row["benchmark"], row.get("protocol"), row.get("scorer"), row.get("seed"))
            found.setdefault(key, []).append(row)
    unsteered, reference = labels(results)
    controls = (results.get("run") or {}).get("controls") or {}
    return [Group(*key, rows, unsteered, reference, controls) for key, rows in found.items()]


def other_rows(results: Mapping) -> list[Mapping]:
    """Rows of benchmarks that do not measure which modality is followed, but of the controls beside those that do."""
    return [r for r in results.get("rows", []) if "follow" not in r.get("metrics", {}) and not r.get("control")]


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
