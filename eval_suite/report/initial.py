"""Samples that the unsteered model answers by the other source: how many turn, and how many break, at growing
strength (figure 2 of the AMPS paper).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eval_suite.report import style
from eval_suite.report.rows import Group, Predictions, groups, is_oracle, target
from eval_suite.report.style import Figure, Look
from factory.plain import csv_text
from factory.run.labels import CURVE
from factory.statistics.intervals import wilson

OTHER = {"vision": "text", "text": "vision"}  # where a run has one direction alone
HEADINGS = ("Table", "Split", "Towards", "Method", "Strength", "n", "Follow", "Compete", "Error")


class Turned(NamedTuple):
    """Of the samples that the unsteered model answers by the other modality, what a method makes at one strength."""

    direction: str
    method: str
    strength: float
    n: int
    follow: int
    compete: int
    error: int


def turned(group: Group, predictions: Predictions) -> tuple[str | None, list[Turned]]:
    """The split, and a count per direction, method and strength; samples without an unsteered answer are left out.

    The split is the scored one where several strengths were scored on it, else the share of it, else dev.
    """
    for split in dict.fromkeys((group.scored_split, CURVE, "dev")):
        found = [
            line
            for direction in group.directions
            if direction
            for line in _toward(group, predictions, direction, split)
        ]
        if len({line.strength for line in found}) > 1:
            return split, found
    return None, []


def _toward(group: Group, predictions: Predictions, direction: str, split: str | None) -> list[Turned]:
    start = group.predictions(predictions, direction, group.unsteered, None, split)
    other = {(p.get("task"), p["sample"]) for p in start if p["outcome"] == "compete"}
    found = []
    for method in group.methods(direction):
        for strength in group.strengths(direction, method, split):
            if not isinstance(strength, (int, float)) or is_oracle(method):
                continue
            records = group.predictions(predictions, direction, method, strength, split)
            outcomes = [p["outcome"] for p in records if (p.get("task"), p["sample"]) in other]
            if outcomes:
                counts = (outcomes.count(name) for name in ("follow", "compete", "error"))
                found.append(Turned(direction, method, float(strength), len(outcomes), *counts))
    return found


def to_csv(results: Mapping, predictions: Predictions) -> str | None:
    """Every count as one table; None where no method was scored at several strengths."""
    lines = [
        (group.title(), split, *line)
        for group in groups(results)
        for split, found in [turned(group, predictions)]
        for line in found
    ]
    return csv_text([HEADINGS, *lines]) if lines else None


def turning(group: Group, palette: Mapping[str, Look], predictions: Predictions, suffix: str = "") -> Figure | str:
    """Following and errors against strength among the samples that start with the other modality, by direction."""
    split, found = turned(group, predictions)
    if not found:
        return (
            f"Samples that start with the other modality ({group.title()}): no unsteered answer, or no method at more"
            " than one strength."
        )
    directions = list(dict.fromkeys(line.direction for line in found))
    figure = style.canvas(5.2 * len(directions) + (1.2 if len(directions) == 1 else 0), 6.6)
    axes = figure.subplots(2, len(directions), sharex="col", sharey="row", squeeze=False, height_ratios=[1.5, 1])
    banded = len({line.method for line in found}) <= style.BANDED
    handles: dict[str, Any] = {}
    for column, direction in enumerate(directions):
        own = [line for line in found if line.direction == direction]
        for method in dict.fromkeys(line.method for line in own):
            lines = [line for line in own if line.method == method]
            for row, metric in enumerate(("follow", "error")):
                handles[method] = _curve(axes[row, column], lines, metric, palette[method], banded)
        n = max(line.n for line in own)
        axes[0, column].set_title(f"From {_other(group, direction)} to {target(direction)}, n = {n}")
        axes[1, column].set_xlabel("Steering strength")
    axes[0, 0].set_ylabel("Follows the target (%)")
    axes[1, 0].set_ylabel("Error (%)")
    style.legend_below(figure, handles)
    caption = (
        f"Those of {group.samples_of(split)} alone whose unsteered answer follows the modality that steering turns"
        " away from: share that follows the target (top) and that ends in an error (bottom) against"
        f" strength{', with 95 % intervals' * banded}. At strength 0 both are 0 by selection."
    )
    title = "Samples that start with the other modality" + (f" ({group.title()})" if suffix else "")
    return style.finish(figure, f"turned{suffix}", title, caption, wide=len(directions) > 1)


def _other(group: Group, direction: str) -> str:
    """The source that steering toward ``direction`` turns away from."""
    beside = next((name for name in group.directions if name and name != direction), OTHER.get(direction))
    return target(beside, "the other source")


def _curve(ax: Any, lines: Sequence[Turned], metric: str, look: Look, banded: bool) -> Any:
    x, counts = [0.0, *(line.strength for line in lines)], [(getattr(line, metric), line.n) for line in lines]
    (handle,) = ax.plot(x, [0.0, *(100 * k / n for k, n in counts)], color=look.color, marker=look.marker, markersize=5)
    if banded:
        low, high = ([100 * wilson(k, n)[end] for k, n in counts] for end in (0, 1))
        style.band(ax, x[1:], low, high, look.color)
    return handle
