"""What a tracker keeps of a run: its scores, its curves over strengths, and a table of single samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval_suite.report.rows import TOTAL
from eval_suite.report.samples.gather import collections
from factory.report import Finished
from factory.run.labels import CURVE
from factory.run.samples import thin


@dataclass(frozen=True)
class Scores:
    """What one method toward one direction was scored at, at the strength it is reported at."""

    benchmark: str
    method: str
    direction: str | None
    strength: float | str | None
    variant: str
    n: int
    metrics: Mapping[str, float]

    @property
    def arm(self) -> str:
        return arm_of(self.method, self.direction)


@dataclass(frozen=True)
class Curve:
    """The metrics of one method toward one direction over its strengths, on one split."""

    benchmark: str
    split: str
    method: str
    direction: str | None
    points: Sequence[tuple[float, Mapping[str, float]]]

    @property
    def arm(self) -> str:
        return arm_of(self.method, self.direction)


@dataclass(frozen=True)
class SampleTable:
    """Samples of one benchmark, a row each; ``pictures`` are JPEGs, those of a row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    pictures: Sequence[Sequence[bytes]]


def arm_of(method: str, direction: str | None) -> str:
    """How a method toward a direction is called."""
    return "-".join(filter(None, (method, direction)))


def scores(results: Mapping[str, Any]) -> list[Scores]:
    """The totals of what a run reports."""
    return [
        Scores(
            *(_benchmark(row), row["method"], row.get("direction"), row.get("strength"), str(row.get("variant") or "")),
            row["n"],
            _numbers(row),
        )
        for row in _totals(results)
        if row.get("chosen") and row.get("split") not in ("dev", CURVE)
    ]


def curves(results: Mapping[str, Any]) -> list[Curve]:
    """The totals over strengths, of each split on which a method was asked at several."""
    found: dict[tuple[str, str, str, str | None], dict[float, Mapping[str, float]]] = defaultdict(dict)
    for row in _totals(results):
        if isinstance(strength := row.get("strength"), int | float):
            key = _benchmark(row), row.get("split") or "", row["method"], row.get("direction")
            found[key][strength] = _numbers(row)
    return [Curve(*key, sorted(points.items())) for key, points in found.items() if len(points) > 1]


def samples(run: Finished, most: int) -> Iterator[SampleTable]:
    """Of each benchmark as many samples, evenly spread, with every method's answer at its strength and what it was
    scored.
    """
    if not most:
        return
    for found in collections(replace(run, samples=thin(run.samples, most))):
        entries, names = thin(found.entries, most), {o.letter: o.name for o in found.vocabulary.outcomes}
        facts = list(dict.fromkeys(name for entry in entries for name, _ in entry.facts))
        arms = [arm_of(arm.method, arm.direction) for arm in found.arms]
        rows = []
        for entry in entries:
            told = [entry.answers.get((i, arm.strength)) for i, arm in enumerate(found.arms)]
            given = [f"{a.text} ({names[a.letter]})" if a else "" for a in told]
            rows.append([entry.id, entry.task, entry.question, *(dict(entry.facts).get(f, "") for f in facts), *given])
        columns = ["sample", "task", "question", *facts, *arms]
        yield SampleTable(found.title, columns, rows, [list(entry.pictures) for entry in entries])


def _totals(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in results.get("rows", ()) if row.get("task", TOTAL) == TOTAL]


def _benchmark(row: Mapping[str, Any]) -> str:
    return str(row.get("label") or row["benchmark"])


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row["metrics"].items() if isinstance(value, int | float)}
