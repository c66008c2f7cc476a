"""One metric of a benchmark against another, over the arms of a comparison: sycophancy against accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval_suite.compare.load import Arm, Score
from eval_suite.compare.table import Table, label
from eval_suite.report import style
from eval_suite.report.style import Figure
from eval_suite.report.table_files import markdown_escape
from factory.statistics.association import spearman

PAIRS = (("accuracy", "mss"),)
"""Metrics of one benchmark that are told against each other: what the model can without pressure, and how much of it
pressure takes."""
NAMES = {"accuracy": "right without pressure", "mss": "MSS, right answers that pressure turns"}
ENOUGH = 5  # models of which a rank correlation says something


@dataclass(frozen=True)
class Point:
    """An arm with both its scores."""

    arm: Arm
    name: str
    x: Score
    y: Score


@dataclass(frozen=True)
class Against:
    """The arms of one benchmark, ``y`` against ``x``, each the name of a metric."""

    benchmark: str
    x: str
    y: str
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        return f"{self.benchmark}: {self.y} against {self.x}"

    @property
    def note(self) -> str:
        """The rank correlation over the models without steering, where there are enough of them."""
        models = [p for p in self.points if p.arm.method == p.arm.unsteered and p.arm.direction is None]
        if len(models) < ENOUGH:
            return f"{len(models)} models without steering: too few for a correlation."
        rho = spearman(np.array([p.x.value for p in models]), np.array([p.y.value for p in models]))
        return f"Spearman's correlation over {len(models)} models without steering: {rho:.2f}."


def against(table: Table) -> list[Against]:
    """Every pair of metrics that two arms or more have of a benchmark."""
    found: list[Against] = []
    lines = [line for block in table.blocks for line in block.lines]
    for benchmark in dict.fromkeys(column[0] for line in lines for column in line.cells):
        for x, y in PAIRS:
            at: dict[tuple[str, str, str | None], Point] = {}
            for line in lines:
                both = [line.cells.get((benchmark, metric, None)) for metric in (x, y)]
                if both[0] and both[1]:
                    key = (line.arm.group, line.arm.method, line.arm.direction)
                    at[key] = Point(line.arm, label(line, table), both[0].score, both[1].score)
            if len(at) > 1:
                found.append(Against(benchmark, x, y, tuple(at.values())))
    return found


def shown(score: Score) -> str:
    """A share in percent with its interval."""
    interval = f" ({100 * score.interval[0]:.1f} to {100 * score.interval[1]:.1f})" if score.interval else ""
    return f"{100 * score.value:.1f}{interval}"


def lines_of(found: Against) -> list[tuple[str, str, str]]:
    """Each arm's name with both scores, from the least to the most of x."""
    ordered = sorted(found.points, key=lambda p: p.x.value)
    return [(p.name, shown(p.x), shown(p.y)) for p in ordered]


def to_markdown(found: Sequence[Against]) -> str:
    parts = []
    for each in found:
        rows = [f"| {markdown_escape(name)} | {x} | {y} |" for name, x, y in lines_of(each)]
        head = [f"### {each.title}", "", f"| model | {NAMES[each.x]} | {NAMES[each.y]} |", "|:---|---:|---:|"]
        parts.append("\n".join([*head, *rows, "", each.note]))
    return "\n\n".join(parts)


def draw(found: Against, index: int) -> Figure:
    """The arms as points with both intervals."""
    figure = style.canvas(7.0, 4.6)
    ax = figure.subplots()
    for point in found.points:
        x, y = 100 * point.x.value, 100 * point.y.value
        ax.errorbar([x], [y], xerr=_bars(point.x), yerr=_bars(point.y), marker="o", linestyle="", capsize=3)
        ax.annotate(point.name, (x, y), xytext=(6, 6), textcoords="offset points", fontsize=10)
    ax.set_xlabel(f"{NAMES[found.x]} (%)")
    ax.set_ylabel(f"{NAMES[found.y]} (%)")
    caption = f"Each point is a model, or a method on it, with 95 % intervals. {found.note}"
    return style.finish(figure, f"against_{index + 1}", found.title, caption)


def _bars(score: Score) -> list[list[float]] | None:
    if score.interval is None:
        return None
    low, high = score.interval
    return [[100 * max(0.0, score.value - low)], [100 * max(0.0, high - score.value)]]
