"""All outcomes of each method at its reported strength, and what they say of its preference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval_suite.report.rows import DASH, TARGETS, TOTAL, Cell, Group, groups, percent, strength_text
from eval_suite.scorers.conflict import OUTCOMES
from factory.plain import csv_text

SHARES = {name: name.capitalize() for name in OUTCOMES}
PREFERENCE = {"vision_ratio": "Vision ratio", "first_option": "First option", "known_ratio": "Known ratio"}
SPANNED = tuple(PREFERENCE.values())
HEADINGS = ("Towards", "Method", "Strength", "n", *SHARES.values(), "Unknown", *PREFERENCE.values(), "Known n")


def outcome_lines(results: Mapping) -> list[tuple[str, list[list[str]]]]:
    """Of each table its title, and a line per direction and method under ``HEADINGS``, shares in percent.

    Unknown is the share of single answers that name neither side; they count as other. The vision ratio is
    S_v / (S_v + S_t) of the samples that follow either modality (SPEC.md 3.3), whatever the method steers toward; first
    option the share of answers for option A where both orders name an option; the known ratio is S_v / (S_v + S_t) of
    the ``Known n`` samples that are answered rightly from each modality alone (``evaluate.known``). All three have
    their 95 % interval. A dash stands where nothing was measured.
    """
    return [(group.title(), _lines(group)) for group in groups(results)]


def _lines(group: Group) -> list[list[str]]:
    lines = []
    for direction in group.directions:
        for method in group.methods(direction):
            choice, total = group.choice(direction, method), group.reported(direction, method)
            if choice is None or total is None:
                continue
            cells = [group.reported(direction, method, name) for name in (*SHARES, *PREFERENCE)]
            shares = [percent(cell.value if cell else None) for cell in cells[: len(SHARES)]]
            head = [TARGETS.get(direction or "", direction or DASH), method, strength_text(choice.strength)]
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
    heads = [h for name in HEADINGS for h in ((name, f"{name} low", f"{name} high") if name in SPANNED else (name,))]
    lines = ([title, *_spread(line)] for title, lines in outcome_lines(results) for line in lines)
    return csv_text([["Table", *heads], *lines])


def _spread(line: Sequence[str]) -> list[str]:
    cells: list[str] = []
    for heading, cell in zip(HEADINGS, line, strict=True):
        value, _, span = ("" if cell == DASH else cell).partition(" (")
        cells += [value, *(span.rstrip(")").split("–") if span else ("", ""))] if heading in SPANNED else [value]
    return cells
