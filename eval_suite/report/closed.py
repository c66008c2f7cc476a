"""How much of the distance from a baseline to the oracle a method closes, with an interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from eval_suite.report.rows import DASH, TARGETS, Group, Predictions, groups, is_oracle, percent
from factory.plain import csv_text
from factory.run.labels import CURVE
from factory.statistics.intervals import bootstrap_sums

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
Hits = Mapping[tuple[str | None, str], float]


class Closed(NamedTuple):
    """Of one method: following rates on ``n`` shared samples, of itself, of the baseline ``start`` (``begins``) and of
    the oracle (``ends``), and the share (follow - begins) / (ends - begins) of the distance, None where there is none.
    The interval is None where some resample has no distance.
    """

    direction: str | None
    method: str
    start: str
    oracle: str
    n: int
    follow: float
    begins: float
    ends: float
    share: float | None
    interval: tuple[float, float] | None


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
                    yield from _closed(direction, (method, hits[method]), (start, hits[start]), (oracle, hits[oracle]))


def _hits(group: Group, predictions: Predictions, direction: str | None, method: str, split: str | None) -> Hits:
    """Whether each sample follows, at the reported strength."""
    choice = group.choice(direction, method)
    strength = None if choice is None or is_oracle(method) else choice.strength
    records = group.predictions(predictions, direction, method, strength, split)
    return {(p.get("task"), p["sample"]): float(p["outcome"] == "follow") for p in records}


def _closed(
    direction: str | None, own: tuple[str, Hits], start: tuple[str, Hits], oracle: tuple[str, Hits]
) -> Iterator[Closed]:
    (method, does), (begin, begins), (end, ends) = own, start, oracle
    shared = [key for key in does if key in begins and key in ends]
    if not shared:
        return
    sums = np.array([[does[key] - begins[key], ends[key] - begins[key]] for key in shared])
    gained, distance = sums.sum(0)
    interval = _interval(sums) if distance > 0 else None
    follow, first, last = (sum(hits[key] for key in shared) / len(shared) for hits in (does, begins, ends))
    share = gained / distance if distance > 0 else None
    yield Closed(direction, method, begin, end, len(shared), follow, first, last, share, interval)


def _interval(sums: np.ndarray) -> tuple[float, float] | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = bootstrap_sums(sums, lambda t: {"share": np.where(t[:, 1] > 0, t[:, 0] / t[:, 1], np.nan)}, 2000)
    low, high = found["share"]
    return None if np.isnan(low) else (low, high)


def to_csv(results: Mapping, predictions: Predictions) -> str | None:
    """Every share as one table; None where no oracle was measured."""
    lines = [
        (group.title(), split, *line[:9], *(line.interval or (None, None)))
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
            rates = [percent(first.follow), percent(first.ends), str(first.n)]
            lines.append(
                [method, TARGETS.get(direction or "", direction or DASH), *rates, *(_told(line) for line in own)]
            )
        if found:
            title = f"{group.title()}, {group.samples_of(split)}, oracle of {found[0].oracle.partition(':')[2].strip()}"
            heads = ["Method", "Towards", "Follow", "Oracle", "n", *(f"Closed from {start}" for start in starts)]
            made.append((title, heads, lines))
    return made


def _told(line: Closed | None) -> str:
    if line is None or line.share is None:
        return DASH
    told = f" [{percent(line.interval[0])}, {percent(line.interval[1])}]" if line.interval else ""
    return percent(line.share) + told
