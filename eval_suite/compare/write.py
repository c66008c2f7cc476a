"""A comparison as terminal table, CSV, Markdown, LaTeX and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table as Shown

from eval_suite.compare import against
from eval_suite.compare.plots import draw
from eval_suite.compare.significance import Test
from eval_suite.compare.table import AS_THEY_ARE, Block, Cell, Line, Table, heading, label, title
from eval_suite.report.closed import Gap
from eval_suite.report.rows import DASH, percent, strength_text
from eval_suite.report.table_files import latex_escape, latex_table, markdown_escape
from factory import files
from factory.plain import csv_text
from factory.terminal import Console

MARKS = {"better": "▲", "worse": "▼", "": ""}
TEX_MARKS = {"better": r"$\blacktriangle$", "worse": r"$\blacktriangledown$", "": ""}
FOOT = (
    "▲ and ▼: better or worse than the unsteered model of the same run (or than the same method in the first run), p <"
    " 0.05 after Holm's correction over all tests here; McNemar's test on right and wrong answers, a paired bootstrap"
    " on graded ones and on questions that hang together, a sign-flip test where those are fewer than 50. Intervals are"
    " 95 %; over several seeds the score is their mean, and the interval one over samples. Rank: mean rank over the"
    " columns that all arms have."
)
TO_THE_ORACLE = (
    " Closed: share of the distance from the same run's unsteered model to its oracle, in percent; a dash where so few"
    " samples make it that some resample has none."
)
BETWEEN = (
    " Closed: share of the distance from {} to {} of the same run, in percent; a dash where so few samples make it that"
    " some resample has none."
)
COSTS = ("parameters", "s/answer", "passes/answer", "tokens/answer", "peak memory")


def foot(table: Table) -> str:
    """What the marks and columns of a comparison mean."""
    if not any(cell.closed for block in table.blocks for line in block.lines for cell in line.cells.values()):
        return FOOT
    return FOOT + (BETWEEN.format(*table.between) if table.between else TO_THE_ORACLE)


def number(value: float, metric: str) -> str:
    """A score times a hundred with one decimal, as papers print shares and caption scores; perplexities and MME's
    points as they are.
    """
    return f"{value:.1f}" if metric in AS_THEY_ARE else f"{100 * value:.1f}"


def shown_value(cell: Cell) -> str:
    return f"{number(cell.score.value, cell.score.column[1])}{MARKS[cell.verdict]}"


def costs(line: Line) -> list[str]:
    """Fitted parameters; seconds, decoder passes and tokens an answer; peak device memory. A dash for what was not
    recorded.
    """
    a = line.arm
    return [
        DASH if a.parameters is None else f"{a.parameters:,}",
        *(DASH if number is None else f"{number:.3g}" for number in (a.seconds, a.passes, a.tokens)),
        DASH if not a.peak_bytes else f"{a.peak_bytes / 2**30:.2f} GiB",
    ]


def _spread(cell: Cell) -> str:
    """The interval, and over several seeds that differ their range."""
    score, metric = cell.score, cell.score.column[1]
    said = ["–".join(number(v, metric) for v in score.interval)] if score.interval else []
    low, high = (number(v, metric) for v in (min(score.values), max(score.values)))
    return "; ".join([*said, *([f"seeds {low}–{high}"] if low != high else [])])


def _share(gap: Gap) -> str:
    return percent(gap.share)


def grid(
    table: Table, block: Block, cell_text: Callable[[Cell], str], gap_text: Callable[[Gap], str] = _share
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of one block, published numbers last; what is closed of the distance to an oracle, and costs,
    have no column where no arm has them.
    """
    ranked = any(line.rank is not None for line in block.lines)
    priced = [any(cost != DASH for cost in column) for column in zip(*map(costs, block.lines), strict=True)]
    closed = [c for c in block.columns if any(c in line.cells and line.cells[c].closed for line in block.lines)]
    heads = [
        "method",
        "strength",
        *map(heading, block.columns),
        *(["rank"] if ranked else []),
        *("closed" if len(closed) == 1 else f"{c[0]} closed" for c in closed),
        *compress(COSTS, priced),
    ]
    rows = []
    for line in block.lines:
        cells = [cell_text(line.cells[c]) if c in line.cells else DASH for c in block.columns]
        gaps = [line.cells[c].closed if c in line.cells else None for c in closed]
        strengths = ", ".join(dict.fromkeys(map(strength_text, line.arm.strengths)))
        rows.append(
            [
                label(line, table),
                strengths,
                *cells,
                *([f"{line.rank:.2f}" if line.rank else DASH] if ranked else []),
                *(gap_text(gap) if gap else DASH for gap in gaps),
                *compress(costs(line), priced),
            ]
        )
    for name, source, values in block.published:
        cells = [number(values[c].value, c[1]) if c in values else DASH for c in block.columns]
        dashes = [DASH] * (ranked + len(closed) + sum(priced))
        rows.append([f"published: {name} [{source}]", DASH, *cells, *dashes])
    return heads, rows


def show(table: Table, console: Console) -> None:
    """Print the comparison; a narrow terminal loses the columns of costs first, then the metrics beside the main
    ones.
    """
    for block in table.blocks:
        main = [c for c in block.columns if any(c in line.cells and line.cells[c].score.main for line in block.lines)]
        for columns, priced in ((block.columns, True), (block.columns, False), (main, False)):
            shown = _terminal(table, replace(block, columns=columns), priced)
            if console.measure(shown, options=console.options.update(width=10_000)).maximum <= console.width:
                break
        console.print(shown)
    if table.against:
        console.print(_listed("Paired differences in points", DIFFERENCES, differences(table)))
    for each in against.against(table):
        heads = ("model", against.NAMES[each.x], against.NAMES[each.y])
        console.print(_listed(each.title, heads, against.lines_of(each)))
        console.print(each.note, style="dim", highlight=False)
    for note in (*table.notes, foot(table)):
        console.print(note, style="dim", markup=False, highlight=False)


DIFFERENCES = ("method", "against", "on", "difference (95 %)", "p (Holm)")


def differences(table: Table) -> list[tuple[str, ...]]:
    """Every paired test: both methods, the column, the mean difference with its interval in points (of metrics that are
    no shares as they are), and the corrected p."""
    rows: list[tuple[str, ...]] = []
    for block in table.blocks:
        toward = f" ({title(block).lower()})" if block.direction and len(table.blocks) > 1 else ""
        for line in block.lines:
            for column, cell in line.cells.items():
                by = 1 if column[1] in AS_THEY_ARE else 100
                for other, test in cell.against.items():
                    d, low, high = (by * x + 0.0 for x in (test.difference, test.low, test.high))
                    told = f"{d:+.1f} ({low:+.1f} to {high:+.1f})"
                    rows.append((label(line, table), other, f"{heading(column)}{toward}", told, f"{test.adjusted:.2g}"))
    return rows


def _listed(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Shown:
    shown = Shown(box=box.SIMPLE_HEAD, title=escape(name), title_justify="left", title_style="bold")
    for i, head in enumerate(heads):
        shown.add_column(head, justify="right" if i else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def _terminal(table: Table, block: Block, priced: bool) -> Shown:
    heads, rows = grid(table, block, shown_value)
    kept = len(heads) if priced else sum(head not in COSTS for head in heads)
    shown = Shown(
        box=box.SIMPLE_HEAD,
        title=title(block),
        title_justify="left",
        title_style="bold",
        padding=(0, 1) if priced else (0, 1, 0, 0),
        pad_edge=False,
    )
    for i, head in enumerate(heads[:kept]):
        shown.add_column(
            escape(head.replace(" ", "\n") if i else head),
            justify="right" if i else "left",
            overflow="fold",
            min_width=0 if i else 12,
        )
    for row in rows:
        style = "red" if any("▼" in cell for cell in row) else "dim" if row[0].startswith("published") else None
        shown.add_row(*map(escape, row[:kept]), style=style)
    return shown


def to_csv(table: Table) -> str:
    """One line per arm and column, with every test."""
    rows: list[list[object]] = [
        [
            "run",
            "method",
            "direction",
            "benchmark",
            "metric",
            "protocol",
            "scorer",
            "n",
            "seeds",
            "value",
            "low",
            "high",
            "parse_failure_rate",
            "rank",
            "parameters",
            "seconds_per_answer",
            "passes_per_answer",
            "tokens_per_answer",
            "peak_bytes",
            "reference",
            "test",
            "difference",
            "difference_low",
            "difference_high",
            "pairs",
            "p",
            "p_holm",
            "verdict",
            "closed",
            "closed_low",
            "closed_high",
        ]
    ]
    for block in table.blocks:
        for line in block.lines:
            for column, cell in line.cells.items():
                s, a = cell.score, line.arm
                low, high = s.interval or ("", "")
                head = [
                    a.group,
                    a.method,
                    block.direction,
                    column[0],
                    column[1],
                    s.protocol,
                    s.scorer,
                    s.counts[0],
                    len(s.values),
                    s.value,
                    low,
                    high,
                    s.failure_rate,
                    line.rank,
                    a.parameters,
                    a.seconds,
                    a.passes,
                    a.tokens,
                    a.peak_bytes,
                ]
                gap = cell.closed
                closed = [gap.share, *(gap.interval or ("", ""))] if gap else [""] * 3
                tests: Mapping[str, Test | None] = cell.against or {"": None}
                for reference, t in tests.items():
                    tested = (
                        [reference, t.name, t.difference, t.low, t.high, t.n, t.p, t.adjusted, t.verdict]
                        if t
                        else [""] * 9
                    )
                    rows.append(["" if v is None else v for v in [*head, *tested, *closed]])
    return csv_text(rows)


def to_markdown(table: Table) -> str:
    parts = []
    for block in table.blocks:
        heads, rows = grid(table, block, lambda c: shown_value(c) + (f" ({_spread(c)})" if _spread(c) else ""), str)
        lines = [
            f"### {title(block)}",
            "",
            "| " + " | ".join(map(markdown_escape, heads)) + " |",
            "|:---|" + "---:|" * (len(heads) - 1),
        ]
        parts.append("\n".join([*lines, *("| " + " | ".join(map(markdown_escape, row)) + " |" for row in rows)]))
    if tested := differences(table):
        head, *body = ("| " + " | ".join(map(markdown_escape, row)) + " |" for row in (DIFFERENCES, *tested))
        parts.append("\n".join(["### Paired differences in points", "", head, "|:---|:---|:---|---:|---:|", *body]))
    told = [pairs] if (pairs := against.to_markdown(against.against(table))) else []
    return "\n\n".join([*parts, *told, *table.notes, foot(table)]) + "\n"


def to_latex(table: Table) -> str:
    """One table a block, as a report's; the first one's caption says what marks and columns mean."""
    parts = []
    for i, block in enumerate(table.blocks, 1):
        heads, rows = grid(table, block, shown_value)
        told = [f"{title(block)}.", *table.notes, *([foot(table)] if i == 1 else [])]
        body = [" & ".join(map(latex_escape, row)) + r" \\" for row in rows]
        columns = "l" + "r" * (len(heads) - 1)
        parts.append(latex_table(latex_escape(" ".join(told)), f"tab:compare-{i}", columns, heads, body))
    text = "\n".join(parts).replace("▲", TEX_MARKS["better"]).replace("▼", TEX_MARKS["worse"])
    return "% \\usepackage{amssymb,booktabs,graphicx}\n" + text


def write(table: Table, folder: Path, plots: bool = True) -> None:
    """compare.{csv,md,tex} and, with ``plots``, figures/ in ``folder``."""
    for suffix, text in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_latex(table))):
        files.write_text(folder / f"compare.{suffix}", text)
    for figure in draw(table) if plots else ():
        for suffix, content in figure.files.items():
            files.write_bytes(folder / "figures" / f"{files.file_name(figure.name)}.{suffix}", content)
