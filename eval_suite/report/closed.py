"""How much of the distance from a baseline to the oracle a method closes, with an interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from eval_suite.report.rows import DASH, Group, Predictions, groups, is_oracle, percent, target
from factory.plain import csv_text
from factory.run.labels import CURVE
from factory.statistics.intervals import bootstrap_sums
from factory.terminal import Console

HEADINGS = (
    "Table",
    "Split",
    "Towards",
    "Method",
    "From",
    "Oracle",
    "n",
    "Follow",
    "Start",
    "End",
    "Closed",
    "Low",
    "High",
)
Hits = Mapping[Any, float]
"""Of each sample, by whatever tells it, whether it follows (over several seeds: how often)."""
MEANING = (
    "Closed: share of the distance from that baseline to the oracle, in percent, with a 95 % interval over samples;"
    " below 0 a method does worse than the baseline; a dash where so few samples lie between that some resample has"
    " none. The oracle picks each sample's strength with the labels."
)


class Gap(NamedTuple):
    """Following rates on ``n`` shared samples, of a method, of the baseline (``begins``) and of the oracle (``ends``),
    and the share (follow - begins) / (ends - begins) of the distance with its interval. Both are None where the
    distance, or that of some resample, is not above 0: so few samples make it that the share says nothing.
    """

    n: int
    follow: float
    begins: float
    ends: float
    share: float | None
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.share is None:
            return DASH
        low_high = f" [{percent(self.interval[0])}, {percent(self.interval[1])}]" if self.interval else ""
        return percent(self.share) + low_high


class Closed(NamedTuple):
    """Of one method: what it closes of the distance from the baseline ``start`` to the oracle."""

    direction: str | None
    method: str
    start: str
    oracle: str
    gap: Gap


def closed(group: Group, predictions: Predictions) -> tuple[str | None, list[Closed]]:
    """The split that the oracle was measured on, all of test or the share of it that curves are of, and each method
    from each baseline: the unsteered model, and the reference whose strengths the oracle chooses among.
    """
    for split in dict.fromkeys((group.scored_split, CURVE)):
        found = [line for d in group.directions for line in _toward(group, predictions, d, split)]
        if found:
            return split, found
    return None, []


def _toward(group: Group, predictions: Predictions, direction: str | None, split: str | None) -> Iterator[Closed]:
    methods = group.methods(direction)
    hits = {method: _hits(group, predictions, direction, method, split) for method in methods}
    for oracle in (m for m in methods if is_oracle(m) and hits[m]):
        for method in (m for m in methods if not is_oracle(m)):
            for start in dict.fromkeys((group.unsteered, group.reference)):
                if start in hits and method not in (start, group.unsteered) and hits[start] and hits[method]:
                    found = gap(hits[method], hits[start], hits[oracle])
                    yield from [Closed(direction, method, start, oracle, found)] if found else []


def _hits(group: Group, predictions: Predictions, direction: str | None, method: str, split: str | None) -> Hits:
    """Whether each sample follows, at the reported strength."""
    choice = group.choice(direction, method)
    strength = None if choice is None or is_oracle(method) else choice.strength
    records = group.predictions(predictions, direction, method, strength, split)
    return {(p.get("task"), p["sample"]): float(p["outcome"] == "follow") for p in records}


def gap(does: Hits, begins: Hits, ends: Hits) -> Gap | None:
    """What is closed on the samples that all three share; None where they share none."""
    shared = [key for key in does if key in begins and key in ends]
    if not shared:
        return None
    sums = np.array([[does[key] - begins[key], ends[key] - begins[key]] for key in shared])
    gained, distance = sums.sum(0)
    interval = _interval(sums) if distance > 0 else None
    follow, first, last = (sum(hits[key] for key in shared) / len(shared) for hits in (does, begins, ends))
    share = gained / distance if interval else None
    return Gap(len(shared), follow, first, last, share, interval)


def _interval(sums: np.ndarray) -> tuple[float, float] | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = bootstrap_sums(sums, lambda t: {"share": np.where(t[:, 1] > 0, t[:, 0] / t[:, 1], np.nan)}, 2000)
    low, high = found["share"]
    return None if np.isnan(low) else (low, high)


def to_csv(results: Mapping, predictions: Predictions) -> str | None:
    """Every share as one table; None where no oracle was measured."""
    lines = [
        (group.title(), split, *line[:4], *line.gap[:5], *(line.gap.interval or (None, None)))
        for group in groups(results)
        for split, found in [closed(group, predictions)]
        for line in found
    ]
    return (
        csv_text([HEADINGS, *(["" if value is None else value for value in line] for line in lines)]) if lines else None
    )


def blocks(results: Mapping, predictions: Predictions) -> list[tuple[str, list[str], list[list[str]]]]:
    """Of each table of the report its title, headings and lines: a method's following rate, and the share that it
    closes from each baseline.
    """
    made = []
    for group in groups(results):
        split, found = closed(group, predictions)
        starts = list(dict.fromkeys(line.start for line in found))
        cells = {(line.direction, line.method, line.start): line for line in found}
        lines = []
        for direction, method in dict.fromkeys((line.direction, line.method) for line in found):
            own = [cells.get((direction, method, start)) for start in starts]
            first = next(line for line in own if line is not None)
            rates = [percent(first.gap.follow), percent(first.gap.ends), str(first.gap.n)]
            shares = [DASH if line is None else str(line.gap) for line in own]
            lines.append([method, target(direction), *rates, *shares])
        if found:
            title = f"{group.title()}, {group.samples_of(split)}, oracle of {found[0].oracle.partition(':')[2].strip()}"
            heads = ["Method", "Towards", "Follow", "Oracle", "n", *(f"Closed from {start}" for start in starts)]
            made.append((title, heads, lines))
    return made


def show(results: Mapping, predictions: Predictions, console: Console) -> None:
    """Print what each method closes; nothing where no oracle was measured. A narrow terminal loses the intervals."""
    made = blocks(results, predictions)
    for title, heads, lines in made:
        shown = _table(title, heads, lines)
        if console.measure(shown, options=console.options.update(width=10_000)).maximum > console.width:
            shown = _table(title, heads, [[cell.partition(" [")[0] for cell in line] for line in lines])
        console.print(shown)
    if made:
        console.print(MEANING, style="dim", markup=False, highlight=False)


def _table(title: str, heads: list[str], lines: list[list[str]]) -> Table:
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=escape(f"How much of the gap to the oracle is closed: {title}"),
        title_justify="left",
        title_style="bold",
        pad_edge=False,
    )
    for i, head in enumerate(heads):
        shown.add_column(escape(head.replace("Closed from ", "Closed\nfrom ")), justify="left" if i < 2 else "right")
    for line in lines:
        shown.add_row(*map(escape, line))
    return shown
