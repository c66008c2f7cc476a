"""The main table: who follows the target modality, task by task, and at what error. One block per direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from eval_suite.report.controls import Controls, controls
from eval_suite.report.outcomes import flag_note
from eval_suite.report.rows import (
    DASH,
    ORACLE,
    TASKS,
    TOTAL,
    Cell,
    Group,
    groups,
    is_oracle,
    other_rows,
    percent,
    short_task,
    strength_text,
    target,
)
from factory.run.labels import CURVE
from factory.terminal import Console

ERROR = "error"
_LAYOUTS = [(True, True, True), (True, False, True), (True, False, False), (False, True, True)]  # tasks, interval, air


@dataclass(frozen=True)
class Entry:
    """One table cell as printed: `text` in percent, `low`/`high` of its interval (empty where there is none)."""

    text: str
    low: str = ""
    high: str = ""
    best: bool = False

    @property
    def interval(self) -> str:
        return f"{self.low}–{self.high}" if self.low and self.high else ""


@dataclass(frozen=True)
class Line:
    """One method's row. `entries` maps a column key (a task, "all" or "error") to its cell."""

    method: str
    strength: str
    chosen: bool
    oracle: bool
    n: int | None
    variant: str
    entries: dict[str, Entry]

    @property
    def label(self) -> str:
        return f"oracle: {self.method.removeprefix(ORACLE)}" if self.oracle else self.method


@dataclass(frozen=True)
class Block:
    """One table: a benchmark, protocol and seed in one direction on one split."""

    group: Group
    direction: str | None
    split: str | None
    columns: list[tuple[str, str]]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    controls: Controls | None = None

    @property
    def title(self) -> str:
        return f"Towards {target(self.direction, 'no direction')}: {self.group.title()}, {self.split or 'all samples'}"

    @property
    def n(self) -> int | None:
        counts = [line.n for line in self.lines if line.n]
        return max(counts) if counts else None


def main_tables(results: Mapping) -> list[Block]:
    """Every block of the main table, at the chosen strengths on the scored split."""
    curve = results.get("run", {}).get("curve")
    return [
        replace(block, controls=controls(results, group, direction))
        for group in groups(results)
        for direction in group.directions
        for block in [_block(group, direction, curve)]
    ]


def _block(group: Group, direction: str | None, curve: Mapping | None) -> Block:
    split, notes, measured = group.scored_split, [], {}
    if split == "dev":
        notes.append("No test rows: these are dev numbers, on the samples the strengths were chosen on.")
    notes += [_upper_bound(group, direction)] if curve and group.reference in group.methods(direction) else []
    for method in group.methods(direction):
        if curve and is_oracle(method):
            continue
        choice = group.choice(direction, method)
        if choice is None:
            notes.append(f"{method}: several strengths were scored and no single one was chosen; left out.")
            continue
        cells = {
            task: group.cell(direction, method, task, "follow", choice.strength, split)
            for task in [*group.tasks, TOTAL]
        }
        cells[ERROR] = group.cell(direction, method, TOTAL, "error", choice.strength, split)
        measured[method] = (choice, cells)
    if note := flag_note(group, direction):
        notes.append(note)
    absent = [short_task(t) for t in _absent_tasks(group)]
    if absent:
        notes.append(f"Not measured: {', '.join(absent)}.")
    keys = [*group.tasks, TOTAL, ERROR]
    best = {key: _best(key, measured) for key in keys}
    lines = [
        Line(
            method,
            strength_text(choice.strength),
            choice.chosen,
            is_oracle(method),
            _count(cells),
            group.variant(direction, method),
            {key: _entry(cells[key], method in best[key]) for key in keys},
        )
        for method, (choice, cells) in measured.items()
    ]
    return Block(group, direction, split, [(k, "Error" if k == ERROR else short_task(k)) for k in keys], lines, notes)


def _upper_bound(group: Group, direction: str | None) -> str:
    """Where test was not all asked at every strength: the oracle beside its method, on the samples that were."""
    method, choice = str(group.reference), group.choice(direction, str(group.reference))
    cells = [
        group.cell(direction, name, TOTAL, "follow", strength, CURVE)
        for name, strength in ((f"{ORACLE}{method}", None), (method, choice and choice.strength))
    ]
    if None in cells:
        return "No oracle: test was asked at the strengths chosen on dev alone (evaluate.curve), and it needs them all."
    best, own = (percent(cell.value) for cell in cells if cell)
    return (
        f"Of {group.samples_of(CURVE)}, asked at every strength, {method} follows {own} % at its own strength and"
        f" {best} % at the best one for each (its oracle); none stands in the table, whose numbers are of all samples."
    )


def _absent_tasks(group: Group) -> list[str]:
    # A benchmark with tasks of its own is not missing MC²'s.
    return [t for t in TASKS if t not in group.tasks] if any(t in TASKS for t in group.tasks) else []


def _best(key: str, measured: Mapping[str, tuple[Any, dict[str, Cell | None]]]) -> set[str]:
    """Methods with the best printed value of a column; none where all tie, because nothing is told apart there."""
    values = {
        method: round(100 * cell.value, 1)
        for method, (_, cells) in measured.items()
        if (cell := cells[key]) is not None and not is_oracle(method)
    }
    if len(set(values.values())) < 2:
        return set()
    top = (min if key == ERROR else max)(values.values())
    return {method for method, value in values.items() if value == top}


def _entry(cell: Cell | None, best: bool) -> Entry:
    if cell is None:
        return Entry(DASH)
    known = cell.low is not None and cell.high is not None
    return Entry(percent(cell.value), percent(cell.low) if known else "", percent(cell.high) if known else "", best)


def _count(cells: Mapping[str, Cell | None]) -> int | None:
    total = cells[TOTAL]
    if total is not None:
        return total.n
    counts = [cell.n for key, cell in cells.items() if cell is not None and cell.n and key != ERROR]
    return sum(counts) if counts else None


def print_tables(results: Mapping, console: Console) -> None:
    """Print the main tables; a narrow terminal loses intervals first, then the tasks."""
    blocks = main_tables(results)
    for block in blocks:
        console.print(_fitting(block, console))
        decided = [f"{line.label} {line.variant}" for line in block.lines if line.variant]
        for note in [*block.notes, *([f"Chosen on dev too: {', '.join(decided)}."] if decided else [])]:
            console.print(f"  {note}", markup=False, highlight=False)
        if block.controls:
            console.print(_controls_terminal(block.controls))
        console.print()
    others = other_rows(results)
    if others:
        console.print(_others_terminal(others))
    if not blocks and not others:
        console.print("No results yet: results.json holds no rows.")
    elif blocks:
        console.print(
            "Share of samples that follow the target, in percent; bold is the best of a column. "
            "An oracle picks each sample's strength with the labels: an upper bound.",
            style="dim",
        )


def _controls_terminal(found: Controls) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=found.title, title_justify="left", padding=(0, 1), pad_edge=False)
    table.add_column("Method", overflow="fold")
    for heading in ("Str.", *found.columns):
        table.add_column(heading, justify="right")
    for method, strength, cells in found.lines:
        table.add_row(*map(escape, (method, strength, *(text for text, _ in cells))))
    return table


def _fitting(block: Block, console: Console) -> Table:
    """The roomiest layout whose columns all fit, so that no number is ever cut."""
    unbounded = console.options.update(width=10_000)  # a measure is otherwise cut to the console's own width
    for layout in _LAYOUTS:
        table = _terminal(block, *layout)
        if console.measure(table, options=unbounded).maximum <= console.width:
            return table
    return _terminal(block, *_LAYOUTS[-1], fold=True)


def _terminal(block: Block, tasks: bool, interval: bool, air: bool, fold: bool = False) -> Table:
    subtitle = f" (n = {block.n})" if block.n else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=escape(block.title + subtitle),
        title_justify="left",
        title_style="bold",
        padding=(0, 1) if air else 0,
        pad_edge=False,
    )
    table.add_column("Method", overflow="fold", no_wrap=not fold)
    table.add_column("Str.", justify="right", no_wrap=True)
    shown = [c for c in block.columns if tasks or c[0] in (TOTAL, ERROR)]
    for key, label in shown:
        table.add_column(label if air else {"Error": "Err"}.get(label, label), justify="right", no_wrap=True)
        if key == TOTAL and interval:
            table.add_column("95 % CI", justify="left", no_wrap=True, style="dim")
    for index, line in enumerate(block.lines):
        cells = [escape(line.label), line.strength]
        for key, _ in shown:
            entry = line.entries[key]
            cells.append(f"[bold]{entry.text}[/bold]" if entry.best else entry.text)
            if key == TOTAL and interval:
                cells.append(entry.interval)
        last = index + 1 == len(block.lines)
        ends = not last and block.lines[index + 1].oracle and not line.oracle
        table.add_row(*cells, style="dim italic" if line.oracle else None, end_section=ends)
    return table


def metric_lines(rows: list[Mapping], main_only: bool = False) -> list[tuple[str, ...]]:
    """Long-form cells of the other benchmarks: benchmark, split, task, method and direction, strength, metric, value,
    interval, n.
    """
    lines: list[tuple[str, ...]] = []
    for row in rows:
        names = [n for n in row.get("metrics", {}) if not main_only or n == row.get("main", n)]
        for name, value in ((n, row["metrics"][n]) for n in names):
            low, high = (row.get("ci") or {}).get(name) or (None, None)
            interval = f"{low:.3f}–{high:.3f}" if low is not None and high is not None else ""
            lines.append(
                (
                    row.get("label") or row["benchmark"],
                    row.get("split") or DASH,
                    short_task(row.get("task", TOTAL)),
                    _steered(row),
                    strength_text(row.get("strength")),
                    name,
                    DASH if value is None else f"{value:.3f}",
                    interval,
                    str(row.get("n", DASH)),
                )
            )
    return lines


def _steered(row: Mapping) -> str:
    return f"{row['method']} ({row['direction']})" if row.get("direction") else row["method"]


METRIC_HEADINGS = ("Benchmark", "Split", "Task", "Method", "Str.", "Metric", "Value", "95 % CI", "n")


def _others_terminal(rows: list[Mapping]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Other benchmarks", title_justify="left", title_style="bold")
    for heading in METRIC_HEADINGS:
        table.add_column(heading, justify="right" if heading in ("Str.", "Value", "n") else "left")
    for line in metric_lines([row for row in rows if row.get("task", TOTAL) == TOTAL], main_only=True):
        table.add_row(*map(escape, line))
    return table
