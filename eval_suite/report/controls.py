"""The controls beside a steering table: the same questions without a conflict, under the same methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval_suite.report.rows import DASH, TOTAL, Group, percent, strength_text
from factory.data.sources import in_words
from factory.plain import csv_text

FOLLOWED = {"vision": "image", "text": "text", "flags": "flagged"}
CSV = ("direction", "method", "strength", "control", "metric", "value", "low", "high", "n")


@dataclass(frozen=True)
class Controls:
    """One table: a line for each method, a column for each control, in percent with its 95 % interval."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    n: tuple[int, ...]

    @property
    def title(self) -> str:
        questions = " and ".join(str(n) for n in self.n)
        return f"Controls beside it: no conflict, {questions} questions each"


def control_rows(results: Mapping) -> list[Mapping]:
    """The rows of all controls, over all their tasks."""
    return [row for row in results.get("rows", []) if row.get("control") and row.get("task", TOTAL) == TOTAL]


def controls(results: Mapping, group: Group, direction: str | None) -> Controls | None:
    """The controls of a benchmark beside its table in one direction, the model as it is among the methods, in the
    table's order; None where none were asked.
    """
    about = (group.benchmark, group.seed)
    own = [row for row in control_rows(results) if (row["benchmark"], row.get("seed")) == about]
    own = [row for row in own if row.get("direction") in (None, direction)]
    if not own:
        return None
    named = list(dict.fromkeys((row["control"], row["main"]) for row in own))
    place = {method: at for at, method in enumerate(group.methods(direction))}
    asked = dict.fromkeys((row["method"], row.get("strength")) for row in own)
    methods = sorted(asked, key=lambda arm: place.get(arm[0], len(place)))
    at = {(row["method"], row.get("strength"), row["control"]): row for row in own}
    lines = tuple(
        (method, strength_text(strength), tuple(_cell(at.get((method, strength, name))) for name, _ in named))
        for method, strength in methods
    )
    columns = tuple(f"{name}: {FOLLOWED.get(main, main)}" for name, main in named)
    return Controls(columns, lines, tuple(sorted({row["n"] for row in own})))


def _cell(row: Mapping | None) -> tuple[str, str]:
    """A share and its interval."""
    value = (row or {}).get("metrics", {}).get((row or {}).get("main"))
    if row is None or value is None:
        return DASH, ""
    low, high = (row.get("ci") or {}).get(row["main"]) or (None, None)
    return percent(value), "" if low is None else f"{percent(low)}–{percent(high)}"


def to_csv(results: Mapping) -> str | None:
    """All metrics of all controls; None where none were asked."""
    rows: list[Sequence[object]] = [CSV]
    for row in control_rows(results):
        toward = in_words(row["direction"]) if row.get("direction") else ""
        about = (toward, row["method"], row.get("strength"), row["control"])
        for name, value in row["metrics"].items():
            rows.append((*about, name, value, *((row.get("ci") or {}).get(name) or ("", "")), row["n"]))
    return csv_text(rows) if len(rows) > 1 else None
