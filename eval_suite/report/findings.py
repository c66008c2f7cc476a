"""The sections that diagnostics write themselves: findings, tables and figures of `factory.diagnose.summary`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eval_suite.report.rows import DASH
from factory import files
from factory.diagnose.summary import Cell, Summary, Table
from factory.plain import csv_text
from factory.terminal import Console

if TYPE_CHECKING:
    from eval_suite.report.style import Figure

VERDICTS = {True: "holds", False: "does not hold", None: ""}


class Section(NamedTuple):
    """One diagnostic's section of the page."""

    title: str
    findings: list[tuple[str, str]]
    tables: list[tuple[str, tuple[str, ...], list[list[str]]]]
    figures: list[Figure]
    leads: bool = False


def sections(summaries: Sequence[Summary], plots: bool) -> list[Section]:
    """What the page shows of each summary; without `plots` no figure is drawn."""
    return [
        Section(
            summary.title,
            [(f.text, VERDICTS[f.holds]) for f in summary.findings],
            [(t.title, t.columns, cells(t)) for t in summary.tables],
            _drawn(summary) if plots else [],
            summary.leads,
        )
        for summary in summaries
        if summary.shown
    ]


def _drawn(summary: Summary) -> list[Figure]:
    from eval_suite.report import style  # here: printing findings does not load matplotlib

    figures = []
    with style.styled():
        for wanted in summary.figures:
            canvas = style.canvas(*wanted.size)
            wanted.draw(canvas)
            figures.append(style.finish(canvas, wanted.name, wanted.title, wanted.caption, wide=wanted.size[0] > 6))
    return figures


def write_tables(summaries: Sequence[Summary], folder: Path) -> None:
    """Write every table as `NAME.csv` with its full numbers, and every document as `NAME.json`, or `NAME.jsonl`."""
    for table in (t for summary in summaries for t in summary.tables):
        files.write_text(folder / f"{files.file_name(table.name)}.csv", _csv(table))
    for document in (d for summary in summaries for d in summary.documents):
        parts = document.content if document.lines else [document.content]
        text = "".join(json.dumps(p, indent=None if document.lines else 1, ensure_ascii=False) + "\n" for p in parts)
        files.write_text(folder / f"{files.file_name(document.name)}.json{'l' if document.lines else ''}", text)


def print_findings(summaries: Sequence[Summary], console: Console) -> None:
    """One line per finding, with its answer in front where it is a claim."""
    for summary in summaries:
        if summary.findings:
            console.print(summary.title, style="bold", markup=False, highlight=False)
        for finding in summary.findings:
            verdict = VERDICTS[finding.holds]
            console.print(
                f"  {verdict + ': ' if verdict else ''}{finding.text}", highlight=False, markup=False, soft_wrap=True
            )


def cells(table: Table) -> list[list[str]]:
    """A table's cells as text: whole numbers with a mark at every thousand, others to three digits after the point and
    never -0.000, nothing as a dash. A column whose numbers are all whole, and do not lie between -1 and 1 as shares and
    correlations do, is one of whole numbers.
    """
    whole = [_counts(column) for column in zip(*table.rows, strict=True)]
    return [[_cell(*each) for each in zip(row, whole, strict=True)] for row in table.rows]


def _counts(column: Sequence[Cell]) -> bool:
    numbers = [c for c in column if isinstance(c, float) and not math.isnan(c)]
    return all(c.is_integer() for c in numbers) and any(abs(c) > 1 for c in numbers)


def _cell(value: Cell, whole: bool) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:z,.0f}" if whole or isinstance(value, int) else f"{value:z.3f}"


def _csv(table: Table) -> str:
    return csv_text([table.columns, *table.rows])
