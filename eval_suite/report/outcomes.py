"""All outcomes of each method at its reported strength, and what they say of its preference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

from eval_suite.report.rows import DASH, TOTAL, Cell, Group, groups, percent, strength_text, target
from eval_suite.results import ratio_of
from eval_suite.scorers.conflict import OUTCOMES, SIDES
from factory.plain import csv_text

SHARES = {name: name.capitalize() for name in OUTCOMES}
BESIDE = {"first_option": "First option", "known_ratio": "Known ratio"}
RATIO = ratio_of(SIDES[0])


def headings(results: Mapping) -> tuple[str, ...]:
    """The columns of ``outcome_lines``; the ratio bears the name of its source where all tables have one ratio."""
    ratios = {_ratio(group) for group in groups(results)} or {RATIO}
    ratio = _headed(ratios.pop()) if len(ratios) == 1 else "Ratio of the first source"
    return ("Towards", "Method", "Strength", "n", *SHARES.values(), "Unknown", ratio, *BESIDE.values(), "Known n")


def _headed(metric: str) -> str:
    return metric.replace("_", " ").capitalize()


def _ratio(group: Group) -> str:
    """The metric S_v / (S_v + S_t) of a table, by the name of its first source."""
    names = {name for row in group.rows for name in row["metrics"]}
    named = (ratio_of(direction) for direction in group.directions if direction)
    return next((name for name in (RATIO, *named) if name in names), RATIO)


HEADINGS = headings({})
SPANNED = range(HEADINGS.index(_headed(RATIO)), len(HEADINGS) - 1)
"""Places of the columns that have an interval."""


def outcome_lines(results: Mapping) -> list[tuple[str, list[list[str]]]]:
    """Of each table its title, and a line per direction and method under ``headings``, shares in percent.

    Unknown is the share of single answers that name neither side; they count as other. The vision ratio is
    S_v / (S_v + S_t) of the samples that follow either modality (SPEC.md 3.3), whatever the method steers toward; first
    option the share of answers for option A where both orders name an option; the known ratio is S_v / (S_v + S_t) of
    the ``Known n`` samples that are answered rightly from each modality alone (``evaluate.known``). All three have
    their 95 % interval. A dash stands where nothing was measured.
    """
    return [(group.title(), _lines(group)) for group in groups(results)]


def blocks(results: Mapping) -> list[tuple[str, list[str], list[list[str]]]]:
    """``outcome_lines`` as the page shows them, each with its headings, less the columns that hold dashes alone."""
    made, heads = [], headings(results)
    for title, lines in outcome_lines(results):
        kept = [i < 4 or any(line[i] != DASH for line in lines) for i in range(len(heads))]
        made.append((title, list(compress(heads, kept)), [list(compress(line, kept)) for line in lines]))
    return made


def _lines(group: Group) -> list[list[str]]:
    lines = []
    for direction in group.directions:
        for method in group.methods(direction):
            choice, total = group.choice(direction, method), group.reported(direction, method)
            if choice is None or total is None:
                continue
            cells = [group.reported(direction, method, name) for name in (*SHARES, _ratio(group), *BESIDE)]
            shares = [percent(cell.value if cell else None) for cell in cells[: len(SHARES)]]
            head = [target(direction), method, strength_text(choice.strength)]
            row = group.row(direction, method, TOTAL, choice.strength, group.scored_split) or {}
            shares.append(percent(row.get("unknown_rate")))
            preference = [_with_interval(cell) for cell in cells[len(SHARES) :]]
            known = str(row.get("known_n", DASH))
            lines.append([*head, str(total.n or DASH), *shares, *preference, known])
    return lines


def _with_interval(cell: Cell | None) -> str:
    if cell is None:
        return DASH
    known = cell.low is not None and cell.high is not None
    return percent(cell.value) + (f" ({percent(cell.low)}–{percent(cell.high)})" if known else "")


def flag_note(group: Group, direction: str | None) -> str:
    """Which methods say that the sources disagree, and how often; empty where none does."""
    cells = {method: group.reported(direction, method, "flags") for method in group.methods(direction)}
    said = [f"{method} {percent(cell.value)} %" for method, cell in cells.items() if cell and cell.value > 0]
    return f"Answers that flag the conflict instead: {', '.join(said)}." if said else ""


def to_csv(results: Mapping) -> str:
    """``outcome_lines`` as one table: ends of intervals have their own columns; what was not measured is empty."""
    names = headings(results)
    heads = [
        h for i, name in enumerate(names) for h in ((name, f"{name} low", f"{name} high") if i in SPANNED else (name,))
    ]
    lines = ([title, *_spread(line)] for title, lines in outcome_lines(results) for line in lines)
    return csv_text([["Table", *heads], *lines])


def _spread(line: Sequence[str]) -> list[str]:
    cells: list[str] = []
    for i, cell in enumerate(line):
        value, _, span = ("" if cell == DASH else cell).partition(" (")
        cells += [value, *(span.rstrip(")").split("–") if span else ("", ""))] if i in SPANNED else [value]
    return cells
