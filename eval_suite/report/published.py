"""What a paper prints beside what was measured: only for the same model, direction and method."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from rich import box
from rich.markup import escape
from rich.table import Table

from eval_suite.report.rows import DASH, TOTAL, short_task
from eval_suite.report.tables import ERROR, Block, main_tables
from factory.terminal import Console

CAVEAT = "The paper scores 250 samples a task on which it also trained, and does not say how; compare with care."
_FILES = ("amps.csv",)


@dataclass(frozen=True)
class Published:
    """One method's published rows beside its measured one: ``rows`` are (where from, one cell per column)."""

    method: str
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Beside:
    """Published and measured numbers of one block of the main table."""

    title: str
    columns: list[str]
    methods: list[Published]
    notes: list[str]


@cache
def published() -> list[dict[str, str]]:
    """Every published number: table, model (a zoo card's name), task, direction, method, value in percent, note."""
    folder = files("eval_suite.published")
    return [
        row for name in _FILES for row in csv.DictReader(folder.joinpath(name).read_text(encoding="utf-8").splitlines())
    ]


def beside(results: Mapping) -> list[Beside]:
    """Published numbers beside each block of the main table; none where the run's model is no card's or no paper has
    it.
    """
    model = results.get("run", {}).get("model")
    card = model.get("card") if isinstance(model, Mapping) else None
    numbers = [row for row in published() if row["model"] == card]
    found = [
        _beside(block, [row for row in numbers if row["direction"] == block.direction])
        for block in main_tables(results)
    ]
    return [each for each in found if each.methods]


def _beside(block: Block, numbers: list[dict[str, str]]) -> Beside:
    keys = [key for key, _ in block.columns if key != ERROR]
    methods, notes = [], []
    for line in block.lines:
        own = [row for row in numbers if row["method"] == line.method]
        rows = []
        for table in dict.fromkeys(row["table"] for row in own):
            values = {row["task"]: float(row["value"]) for row in own if row["table"] == table}
            rows.append((table, [f"{values[key]:.1f}" if key in values else DASH for key in keys]))
            notes += [
                f"{table}, {line.method}: {row['note']}."
                for row in own
                if row["table"] == table and row["note"] and row["task"] == TOTAL
            ]
        if rows:
            methods.append(Published(line.label, [("measured", [line.entries[key].text for key in keys]), *rows]))
    return Beside(block.title, [short_task(key) for key in keys], methods, [CAVEAT, *dict.fromkeys(notes)])


def print_published(results: Mapping, console: Console) -> None:
    """Print published numbers under the measured ones they stand for."""
    for each in beside(results):
        table = Table(
            box=box.SIMPLE_HEAD,
            title=escape(f"Published beside measured. {each.title}"),
            title_justify="left",
            title_style="bold",
            padding=0,
            pad_edge=False,
        )
        for heading in ("Method ", "From ", *(f" {column}" for column in each.columns)):
            table.add_column(heading, justify="left" if heading in ("Method ", "From ") else "right", no_wrap=True)
        for method in each.methods:
            for i, (source, cells) in enumerate(method.rows):
                name = escape(method.method) if i == 0 else ""
                table.add_row(f"{name} ", f"{source} ", *(f" {cell}" for cell in cells), style="dim" if i else None)
        console.print(table)
        for note in each.notes:
            console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)
        console.print()
