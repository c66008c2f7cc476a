"""Finished runs as scores and per-sample values, grouped over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_suite.compare import shapes
from eval_suite.compare.significance import of_units
from factory.errors import UserError
from factory.files import file_name

UNSTEERED = "none"
Column = tuple[str, str, str | None]
"""What one column of a table measures: benchmark label, metric, direction of a conflict benchmark."""


@dataclass
class Score:
    """One arm's score in one column, one of ``values``, ``counts``, ``parts`` a seed; ``samples`` are per-sample values
    averaged over seeds.

    Only a benchmark's ``main`` metric is tested and ranked. ``asked``: which samples were answered (their number where
    that is all that is known); ``units``: which samples hang together, and are resampled together; ``common``: scored
    on the samples that all arms of the column share, others left out.
    """

    column: Column
    protocol: str
    scorer: str
    main: bool = True
    values: list[float] = field(default_factory=list)
    intervals: list[tuple[float, float] | None] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    failures: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    asked: list[frozenset[str]] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    common: bool = False

    @property
    def value(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The one of a single seed, or of seeds that are alike; else that of the samples' means over seeds, if the
        score is a mean over samples.
        """
        if len(set(self.values)) == len(set(self.intervals)) == 1:
            return self.intervals[0]
        each = self.samples
        if not each or not math.isclose(sum(each.values()) / len(each), self.value, abs_tol=1e-9):
            return None
        return of_units(list(each.values()), [self.units.get(s, s) for s in each])[1:]

    @property
    def samples(self) -> dict[str, float]:
        shared = [s for s in self.parts[0] if all(s in part for part in self.parts)] if self.parts else []
        return {s: sum(part[s] for part in self.parts) / len(self.parts) for s in shared}


@dataclass
class Arm:
    """One row of a table: a method of a run (of the runs of all its seeds) toward one direction."""

    group: str
    method: str
    direction: str | None
    seeds: list[int] = field(default_factory=list)
    strengths: list[float | None] = field(default_factory=list)
    scores: dict[Column, Score] = field(default_factory=dict)
    parameters: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None


def load(folders: Sequence[Path]) -> list[Arm]:
    """The arms of finished runs. Raises ``UserError`` for a folder without results, and for scores that must not share
    a column.
    """
    arms: dict[tuple, Arm] = {}
    for folder in folders:
        run, rows = shapes.results(folder)
        for row in rows:
            _add(arms, folder, run, row)
    if not arms:
        raise UserError(f"{', '.join(map(str, folders))}: no scores to compare")
    _refuse_mixed_protocols(arms.values())
    return list(arms.values())


def _add(arms: dict[tuple, Arm], folder: Path, run: str, row: Mapping[str, Any]) -> None:
    seed = row.get("seed") or 0
    group = run.removesuffix(f"-seed{seed}")
    method, direction = row["method"], row.get("direction")
    arm = arms.setdefault((group, method, direction), Arm(group, method, direction))
    if seed not in arm.seeds:
        arm.seeds.append(seed)
        arm.strengths.append(row.get("strength"))
    label, name = row.get("label") or row["benchmark"], "-".join(filter(None, (method, direction)))
    records = shapes.answers(_predictions(folder, label, name))
    samples = {p["sample"]: p["value"] for p in records if p["value"] is not None}
    asked = frozenset(p["sample"] for p in records) or frozenset({f"{row['n']} answers"})
    conflict = "follow" in row["metrics"]
    main = row.get("main") or ("follow" if conflict else next(iter(row["metrics"])))
    for metric in (main, *row.get("beside", ())):
        if metric not in row["metrics"]:
            continue
        column = (label, metric, direction if conflict else None)
        score = arm.scores.setdefault(column, Score(column, row["protocol"], row["scorer"], metric == main))
        if (score.protocol, score.scorer) != (row["protocol"], row["scorer"]):
            _refuse(label, (score.protocol, score.scorer), (row["protocol"], row["scorer"]))
        interval = (row.get("ci") or {}).get(metric)
        score.values.append(row["metrics"][metric])
        score.intervals.append(tuple(interval) if interval else None)
        score.counts.append(row["n"])
        score.failures.append(row.get("parse_failure_rate") or 0.0)
        score.asked.append(asked)
        if metric == main:
            score.parts.append(samples)
            score.units |= {p["sample"]: p.get("unit") or p["sample"] for p in records}
    _cost(arm, folder, label, name)


def _predictions(folder: Path, label: str, name: str) -> Path:
    """The file of an arm's answers; earlier versions named it by the bare label, with ``-`` for ``:`` or without."""
    own = folder / "predictions" / file_name(label) / f"{file_name(name)}.jsonl"
    earlier = [
        (label, name) for name in (name.replace(":", "-"), name) if Path(label).name == label and len(label) < 200
    ]
    found = [
        folder / "predictions" / label / f"{name}.jsonl"
        for label, name in earlier
        if Path(name).name == name and len(name) < 200
    ]
    return next((path for path in [own, *found] if path.is_file()), own)


def _cost(arm: Arm, folder: Path, label: str, name: str) -> None:
    if price := shapes.price(folder, f"{label}/{name}"):
        arm.parameters, arm.peak_bytes = price["parameters"], price["peak_bytes"] or arm.peak_bytes
        arm.seconds = price["seconds_per_answer"] or arm.seconds
    if arm.parameters is None:
        arm.parameters = shapes.numbers_of(folder / "artefacts" / file_name(name) / "steering.safetensors")


def _refuse_mixed_protocols(arms: Sequence[Arm]) -> None:
    seen: dict[Column, tuple[str, str]] = {}
    for arm in arms:
        for column, score in arm.scores.items():
            made = (score.protocol, score.scorer)
            if seen.setdefault(column, made) != made:
                _refuse(column[0], seen[column], made)


def _refuse(label: str, one: tuple[str, str], other: tuple[str, str]) -> None:
    raise UserError(
        f"{label}: scores of protocol '{one[0]}' (scorer {one[1]}) and of protocol '{other[0]}' (scorer {other[1]})"
        " must not stand in one column; compare runs that were scored alike, or name the benchmarks apart with 'as:'"
    )
