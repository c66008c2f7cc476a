"""Finished runs as scores and per-sample values, grouped over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from eval_suite.compare import read
from eval_suite.compare.significance import of_units
from factory.errors import UserError
from factory.files import digest, file_name
from factory.run.labels import CURVE

Column = tuple[str, str, str | None]
"""What one column of a table measures: benchmark label, metric, direction of a conflict benchmark."""


@dataclass
class Score:
    """One arm's score in one column, one of ``values``, ``counts``, ``parts`` a seed; ``samples`` are per-sample values
    averaged over seeds. ``failures`` are the shares of answers that cannot be read, ``unread`` those of each sample;
    None and nothing where that is not known.

    Only a benchmark's ``main`` metric is tested and ranked. ``asked``: which samples were answered (their number where
    that is all that is known); ``units``: which samples hang together, and are resampled together; ``items``: what
    tells a sample's content; ``tasks`` those of each sample; ``common``: scored on the samples that all arms of the
    column share, others left out.
    """

    column: Column
    protocol: str
    scorer: str
    main: bool = True
    values: list[float] = field(default_factory=list)
    intervals: list[tuple[float, float] | None] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    failures: list[float | None] = field(default_factory=list)
    unread: list[dict[str, float]] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    asked: list[frozenset[str]] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)
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
    def failure_rate(self) -> float | None:
        """Of all seeds together; None where it is not known of each."""
        known = [rate for rate in self.failures if rate is not None]
        return sum(known) / len(known) if known and len(known) == len(self.failures) else None

    @property
    def samples(self) -> dict[str, float]:
        return mean_over_seeds(self.parts)


def mean_over_seeds(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each sample's values, of the samples that every seed has."""
    shared = [s for s in parts[0] if all(s in part for part in parts)] if parts else []
    return {s: sum(part[s] for part in parts) / len(parts) for s in shared}


@dataclass
class Arm:
    """One row of a table: a method of a run (of the runs of all its seeds) toward one direction. ``group`` names the
    run, ``recipe`` its recipe, ``unsteered`` its method that is the model as it is.
    """

    group: str
    method: str
    direction: str | None
    seeds: list[int] = field(default_factory=list)
    strengths: list[float | None] = field(default_factory=list)
    scores: dict[Column, Score] = field(default_factory=dict)
    parameters: int | None = None
    seconds: float | None = None
    passes: float | None = None
    tokens: float | None = None
    peak_bytes: int | None = None
    recipe: str = ""
    unsteered: str = "none"


def load(folders: Sequence[Path]) -> list[Arm]:
    """The arms of finished runs: one row for each recipe run, the runs of all its seeds together.

    Raises ``UserError`` for a folder without results or with damaged ones, and for scores that must not share a column.
    """
    runs = [_Run(folder, read.results(folder)) for folder in dict.fromkeys(folder.absolute() for folder in folders)]
    groups: list[list[_Run]] = []
    for run in runs:
        group = next((g for g in groups if all(run.is_seed_of(other) for other in g)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    names = _apart(groups)
    arms = [arm for group, name in zip(groups, names, strict=True) for arm in _arms(group, name)]
    if not arms:
        raise UserError(f"{', '.join(map(str, folders))}: no scores to compare")
    _refuse_mixed_protocols(arms)
    return arms


@dataclass
class _Run:
    """A finished run: what counts of its rows, and the predictions behind them."""

    folder: Path
    results: read.Results

    @cached_property
    def rows(self) -> list[read.Row]:
        return [
            r for r in self.results.rows if r.task == "all" and r.split not in ("dev", CURVE) and r.chosen and r.metrics
        ]

    @property
    def seed(self) -> int:
        return next((r.seed for r in self.results.rows if r.seed is not None), 0)

    @property
    def name(self) -> str:
        """The recipe's name, without the seed's number."""
        return self.results.run.name.removesuffix(f"-seed{self.seed}")

    @cached_property
    def made_from(self) -> str:
        """What tells the recipe but for its seed, and its methods' code; of older results the folder that it lies in
        and the recipe that lies beside it."""
        if (told := self.results.run.made_from) is not None:
            return told
        recipe = self.folder / "resolved.yaml"
        text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
        kept = [line for line in text.splitlines() if not line.startswith(("name:", "seed:"))]
        return digest([str(self.folder.parent), kept])

    def records(self, row: read.Row) -> list[read.Record]:
        return read.records(_predictions(self.folder, row.column, row.name))

    @cached_property
    def asked(self) -> dict[tuple[str, str], frozenset[tuple[str, str | None]]]:
        """The samples of each arm on each benchmark, each with what tells its content."""
        return {(r.column, r.name): frozenset((p.sample, p.item) for p in self.records(r)) for r in self.rows}

    def is_seed_of(self, other: _Run) -> bool:
        """Whether two runs are of one recipe on the same samples, with another seed."""
        alike = (self.name, self.made_from) == (other.name, other.made_from) and self.seed != other.seed
        return alike and all(self.asked[key] == other.asked[key] for key in self.asked.keys() & other.asked.keys())


def _apart(groups: Sequence[Sequence[_Run]]) -> list[str]:
    """A name for each group: the recipe's, and where several share it with as much of their folders as tells them."""
    names = [group[0].name for group in groups]
    shown = list(names)
    for i, group in enumerate(groups):
        rivals = [other for k, other in enumerate(groups) if k != i and names[k] == names[i]]
        parts = _place(group)
        depth = next((n for n in range(2, len(parts)) if all(_place(o)[-n:] != parts[-n:] for o in rivals)), len(parts))
        if rivals:
            shown[i] = "/".join(parts[-depth:])
    return shown


def _place(group: Sequence[_Run]) -> tuple[str, ...]:
    """The parts of a run's folder; of several seeds' the folder they share, and the recipe's name."""
    folder = group[0].folder
    return folder.parts if len(group) == 1 else (*folder.parent.parts, group[0].name)


def _arms(group: Sequence[_Run], name: str) -> list[Arm]:
    arms: dict[tuple[str, str | None], Arm] = {}
    for run in group:
        prices = read.prices(run.folder / "costs.json")
        for row in run.rows:
            key = (row.method, row.direction)
            arm = arms.setdefault(key, Arm(name, *key, recipe=run.name, unsteered=run.results.run.unsteered))
            _add(arm, run, row)
            _cost(arm, run.folder, row, prices)
    return list(arms.values())


def _add(arm: Arm, run: _Run, row: read.Row) -> None:
    if run.seed not in arm.seeds:
        arm.seeds.append(run.seed)
        arm.strengths.append(row.strength)
    records = run.records(row)
    samples = {p.sample: p.value for p in records if p.value is not None}
    asked = frozenset(p.sample for p in records) or frozenset({f"{row.n} answers"})
    conflict = "follow" in row.metrics
    main = row.main or ("follow" if conflict else next(iter(row.metrics)))
    for metric in (main, *row.beside):
        if metric not in row.metrics:
            continue
        column = (row.column, metric, row.direction if conflict else None)
        score = arm.scores.setdefault(column, Score(column, row.protocol, row.scorer, metric == main))
        if (score.protocol, score.scorer) != (row.protocol, row.scorer):
            _refuse(row.column, (score.protocol, score.scorer), (row.protocol, row.scorer))
        interval = (row.ci or {}).get(metric)
        score.values.append(row.metrics[metric])
        score.intervals.append((interval[0], interval[1]) if interval and len(interval) == 2 else None)
        score.counts.append(row.n)
        score.failures.append(row.parse_failure_rate)
        score.unread.append({p.sample: share for p in records if (share := p.unread) is not None})
        score.asked.append(asked)
        score.items |= {p.sample: p.item for p in records if p.item is not None}
        score.tasks |= {p.sample: p.tasks for p in records}
        if metric == main:
            score.parts.append(samples)
            score.units |= {p.sample: p.unit or p.sample for p in records}


def _predictions(folder: Path, label: str, name: str) -> Path:
    """The file of an arm's answers; earlier versions named it by the bare label, with ``-`` for ``:`` or without."""
    own = folder / "predictions" / file_name(label) / f"{file_name(name)}.jsonl"
    plain = lambda text: Path(text).name == text and len(text) < 200
    earlier = [name for name in (name.replace(":", "-"), name) if plain(label) and plain(name)]
    found = [folder / "predictions" / label / f"{name}.jsonl" for name in earlier]
    return next((path for path in [own, *found] if path.exists()), own)


def _cost(arm: Arm, folder: Path, row: read.Row, prices: Mapping[str, read.Price | None]) -> None:
    if price := prices.get(f"{row.column}/{row.name}"):
        arm.parameters, arm.peak_bytes = price.parameters, price.peak_bytes or arm.peak_bytes
        arm.seconds = price.seconds_per_answer or arm.seconds
        arm.passes, arm.tokens = price.passes_per_answer or arm.passes, price.tokens_per_answer or arm.tokens
    if arm.parameters is None:
        arm.parameters = read.numbers(folder / "artefacts" / file_name(row.name) / "steering.safetensors")


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
