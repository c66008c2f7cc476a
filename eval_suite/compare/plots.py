"""Figures of a comparison: scores with intervals, and differences from the unsteered model."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from eval_suite.compare import against
from eval_suite.compare.load import Column
from eval_suite.compare.table import AS_THEY_ARE, Block, Line, Table, heading, label, title
from eval_suite.report import style
from eval_suite.report.style import Figure

ACROSS = 4  # panels side by side
VERDICTS = {"better": "#009E73", "worse": "#D55E00", "": "#6e6e6e"}
FEWER_IS_BETTER = ("perplexity", "error", "repetitive", "empty")
LEAST = 2.0  # points across a panel: nobody reads thousandths of a point from scores that are all the same
TITLE = 28  # letters of a panel's title on one line


class Mark(NamedTuple):
    """A value with the ends of its interval, and its colour."""

    value: float
    low: float
    high: float
    color: str


def draw(table: Table) -> list[Figure]:
    """One figure of scores per block, and one of differences where something was tested."""
    with style.styled():
        figures = [_scores(table, block, i) for i, block in enumerate(table.blocks)]
        figures += [f for i, block in enumerate(table.blocks) if (f := _differences(table, block, i))]
        return figures + [against.draw(each, i) for i, each in enumerate(against.against(table))]


def _scores(table: Table, block: Block, index: int) -> Figure:
    def mark(line: Line, column: Column) -> Mark | None:
        if (cell := line.cells.get(column)) is None:
            return None
        low, high = cell.score.interval or (min(cell.score.values), max(cell.score.values))
        return Mark(cell.score.value, low, high, VERDICTS[cell.verdict])

    caption = (
        "Scores with 95 % intervals over samples; over several seeds their mean, with the seeds' range where a score is"
        " no mean over samples. Green is better and orange worse than the reference, where p < 0.05 after Holm's"
        " correction."
    )
    return _panels(table, block, block.columns, mark, f"scores_{index + 1}", caption)


def _differences(table: Table, block: Block, index: int) -> Figure | None:
    def mark(line: Line, column: Column) -> Mark | None:
        test = line.cells[column].against.get(line.arm.unsteered) if column in line.cells else None
        return Mark(test.difference, test.low, test.high, VERDICTS[test.verdict]) if test else None

    columns = [column for column in block.columns if any(mark(line, column) for line in block.lines)]
    if not columns:
        return None
    caption = (
        "Paired differences from the unsteered model on the same samples, with 95 % intervals; coloured where p < 0.05"
        " after Holm's correction. The line is the unsteered model."
    )
    return _panels(table, block, columns, mark, f"differences_{index + 1}", caption, "difference of ")


def _panels(
    table: Table,
    block: Block,
    columns: Sequence[Column],
    mark: Callable[[Line, Column], Mark | None],
    name: str,
    caption: str,
    of: str = "",
) -> Figure:
    """A panel for each column, the arms named on its axis from the first downwards."""
    lines = [line for line in block.lines if any(mark(line, column) for column in columns)]
    names = [label(line, table) for line in lines]
    across = min(len(columns), ACROSS)
    down = -(-len(columns) // across)
    margin = 1.0 + 0.085 * max(map(len, names), default=0)  # inches: names on the axis are about so wide a letter
    figure = style.canvas(margin + 2.6 * across, down * (1.3 + 0.27 * len(lines)))
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for ax, column in zip_longest(grid.flat, columns):
        if column is None:
            ax.set_axis_off()
            continue
        scale = 1 if column[1] in AS_THEY_ARE else 100
        for y, line in enumerate(lines):
            if found := mark(line, column):
                value, low, high = (scale * number for number in found[:3])
                error = [[max(0.0, value - low)], [max(0.0, high - value)]]
                ax.errorbar([value], [y], xerr=error, color=found.color, marker="o", linestyle="", capsize=3)
        if of:
            ax.axvline(0, color="#444444", linewidth=1)
        ax.set_yticks(range(len(lines)), names)
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ax.set_title(textwrap.fill(heading(column), TITLE), fontsize=11)
        main = any(line.cells[column].score.main for line in lines if column in line.cells)
        ax.set_xlabel(of + _unit(column[1], main), fontsize=10)
        _widen(ax, LEAST * scale / 100)
    return style.finish(figure, name, title(block), caption)


def _widen(ax: Axes, least: float) -> None:
    """At least ``least`` across, with few enough ticks to keep their numbers apart."""
    low, high = ax.get_xlim()
    if high - low < least:
        ax.set_xlim((low + high - least) / 2, (low + high + least) / 2)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _unit(metric: str, main: bool) -> str:
    """A metric with its unit, and which way is better where that is known: of what is beside a benchmark's main metric
    mostly neither is.
    """
    unit = metric if metric in AS_THEY_ARE else f"{metric} (%)"
    better = "left" if metric in FEWER_IS_BETTER else "right" if main else ""
    return f"{unit}, {better} is better" if better else unit
