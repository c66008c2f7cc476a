"""Figures of a comparison: scores with intervals, and differences from the unsteered model."""

from __future__ import annotations

from itertools import zip_longest

from matplotlib.artist import Artist

from eval_suite.compare.table import Block, Table, heading, label, title
from eval_suite.report import style
from eval_suite.report.style import Figure

ACROSS = 4  # panels side by side


def draw(table: Table) -> list[Figure]:
    """One figure of scores per block, and one of differences where something was tested."""
    with style.styled():
        figures = [_scores(table, block, i) for i, block in enumerate(table.blocks)]
        return figures + [f for i, block in enumerate(table.blocks) if (f := _differences(table, block, i))]


def _scores(table: Table, block: Block, index: int) -> Figure:
    unsteered = next((label(line, table) for line in block.lines if line.arm.method == line.arm.unsteered), "")
    palette = style.looks((label(line, table) for line in block.lines), unsteered)
    across = min(len(block.columns), ACROSS)
    down = -(-len(block.columns) // across)
    figure = style.canvas(max(6.0, 1.0 + 2.2 * across), 1.4 + 3.2 * down)
    axes = figure.subplots(down, across, squeeze=False).flat
    handles: dict[str, Artist] = {}
    for ax, column in zip_longest(axes, block.columns):
        if column is None:
            ax.set_axis_off()
            continue
        for x, line in enumerate(block.lines):
            if (cell := line.cells.get(column)) is None:
                continue
            look, value = palette[label(line, table)], cell.score.value
            low, high = cell.score.interval or (min(cell.score.values), max(cell.score.values))
            errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
            handles[label(line, table)] = ax.errorbar(
                [x], [value], yerr=errors, color=look.color, marker=look.marker, linestyle="", capsize=3
            )
        ax.set_xticks([])
        ax.set_title(heading(column), fontsize=11)
    style.legend_below(figure, handles)
    caption = (
        "Scores with 95 % intervals over samples; over several seeds their mean, with the seeds' range where a score is"
        " no mean over samples."
    )
    return style.finish(figure, f"scores_{index + 1}", title(block), caption)


def _differences(table: Table, block: Block, index: int) -> Figure | None:
    tests = [
        (f"{label(line, table)}, {heading(column)}", cell.against[line.arm.unsteered])
        for line in block.lines
        for column, cell in line.cells.items()
        if line.arm.unsteered in cell.against
    ]
    if not tests:
        return None
    figure = style.canvas(8.0, 1.2 + 0.34 * len(tests))
    ax = figure.subplots()
    colours = {"better": "#009E73", "worse": "#D55E00", "": "#6e6e6e"}
    for y, (_, t) in enumerate(tests):
        ax.errorbar(
            [t.difference],
            [y],
            xerr=[[t.difference - t.low], [t.high - t.difference]],
            color=colours[t.verdict],
            marker="o",
            capsize=3,
            linestyle="",
        )
    ax.axvline(0, color="#444444", linewidth=1)
    ax.set_yticks(range(len(tests)), [name for name, _ in tests])
    ax.invert_yaxis()
    ax.set_xlabel("Difference from the unsteered model, per-sample score")
    caption = "Paired differences with 95 % intervals; coloured where p < 0.05 after Holm's correction."
    return style.finish(figure, f"differences_{index + 1}", title(block), caption)
