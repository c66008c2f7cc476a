"""The small tables of the report page: strengths, protocols, skipped samples, environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from eval_suite.report.rows import (
    DASH,
    TOTAL,
    groups,
    is_oracle,
    percent,
    strength_text,
    target,
)
from eval_suite.report.verdict import Comparison
from factory.statistics.intervals import PairedDifference


def error_budget(results: Mapping, recipe_yaml: str) -> float | None:
    """The share of errors allowed on dev, from the results' run entry or the recipe; None where neither says."""
    value = results.get("run", {}).get("error_budget")
    if value is None:
        try:
            recipe = yaml.safe_load(recipe_yaml) or {}
        except yaml.YAMLError:
            return None  # the recipe is shown as text whatever it is; only the budget line needs its structure
        evaluate = recipe.get("evaluate") if isinstance(recipe, dict) else None
        value = evaluate.get("error_budget") if isinstance(evaluate, dict) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def strength_lines(results: Mapping, budget: float | None) -> list[dict[str, str | bool]]:
    """How each method's strength was picked: what was tried, and dev against test at the one that was chosen."""
    lines: list[dict[str, str | bool]] = []
    for group in groups(results):
        for direction in group.directions:
            for method in group.methods(direction):
                choice = group.choice(direction, method)
                tried = [s for s in group.strengths(direction, method, "dev") if s is not None]
                tried = tried or [s for s in group.strengths(direction, method, group.scored_split) if s is not None]
                if is_oracle(method) or not tried:
                    continue
                strength = choice.strength if choice else None
                dev = {m: group.cell(direction, method, TOTAL, m, strength, "dev") for m in ("follow", "error")}
                test = {m: group.cell(direction, method, TOTAL, m, strength, "test") for m in ("follow", "error")}
                over = budget is not None and dev["error"] is not None and dev["error"].value > budget
                lines.append(
                    {
                        "benchmark": group.title(),
                        "direction": target(direction),
                        "method": method,
                        "variant": group.variant(direction, method),
                        "tried": ", ".join(map(strength_text, tried)),
                        "chosen": strength_text(strength) if choice else "none",
                        "dev_follow": _value(dev["follow"]),
                        "dev_error": _value(dev["error"]),
                        "over": over,
                        "test_follow": _value(test["follow"]),
                        "test_error": _value(test["error"]),
                    }
                )
    return lines


def _value(cell: Any) -> str:
    return percent(cell.value if cell else None)


def comparison_lines(compared: Sequence[Comparison]) -> list[dict[str, str | bool]]:
    """Paired differences in percentage points, ready to print."""

    def span(d: PairedDifference) -> str:
        return f"{percent(d.low, signed=True)} to {percent(d.high, signed=True)}"

    return [
        {
            "benchmark": c.group.title(),
            "direction": target(c.direction),
            "pair": f"{c.method} − {c.reference}",
            "follow": percent(c.follow.difference, signed=True),
            "follow_ci": span(c.follow),
            "error": percent(c.error.difference, signed=True),
            "error_ci": span(c.error),
            "n": str(c.follow.n),
            "verdict": c.verdict,
            "unmatched": str(c.follow.unmatched),
            "wins": c.follow.verdict == "higher" and c.control is None,
        }
        for c in compared
    ]


def protocol_lines(results: Mapping) -> list[dict[str, str]]:
    """One line per distinct way of scoring: rows that share protocol, prompt hash, scorer and seed."""
    keys = ("benchmark", "split", "protocol", "prompt_hash", "scorer", "seed")
    found: dict[tuple, list[Mapping]] = {}
    for row in results.get("rows", []):
        found.setdefault(tuple(row.get(k) for k in keys), []).append(row)
    lines = []
    for key, rows in found.items():
        totals = [r for r in rows if r.get("task", TOTAL) == TOTAL] or rows
        lines.append(
            {
                **{k: DASH if v is None else str(v) for k, v in zip(keys, key, strict=True)},
                "methods": ", ".join(dict.fromkeys(r["method"] for r in rows)),
                "n": _span([r.get("n") for r in totals], str),
                "parse_failures": _span([r.get("parse_failure_rate") for r in totals], percent),
                "skipped": _span([r.get("skipped") for r in totals], str),
            }
        )
    return lines


def _span(values: Sequence[Any], show: Callable[[Any], str]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return DASH
    low, high = show(min(known)), show(max(known))
    return low if low == high else f"{low}–{high}"


def skipped_samples(results: Mapping) -> tuple[list[tuple[str, str]], int]:
    """Named skipped samples with their reasons, and the largest count any row reports."""
    entry = results.get("run", {}).get("skipped") or []
    if isinstance(entry, Mapping):
        named = [(str(k), "" if v is None else str(v)) for k, v in entry.items()]
    elif isinstance(entry, (list, tuple)):
        named = [
            (str(e.get("sample", DASH)), str(e.get("reason", ""))) if isinstance(e, Mapping) else (str(e), "")
            for e in entry
        ]
    else:
        named = []
    return named, max((int(r.get("skipped") or 0) for r in results.get("rows", [])), default=0)


def environment(results: Mapping) -> list[tuple[str, str]]:
    """The run entry of results.json as flat key and value lines, in its own order."""
    hidden = {"skipped", "notes", "choices"}  # each has a place of its own on the page
    return [line for key, value in results.get("run", {}).items() if key not in hidden for line in _flat(key, value)]


def notes(results: Mapping) -> list[str]:
    """What the run wrote down about itself."""
    value = results.get("run", {}).get("notes")
    if not value:
        return []
    return [str(v) for v in value] if isinstance(value, (list, tuple)) else [str(value)]


def _flat(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [line for k, v in value.items() for line in _flat(f"{key}.{k}", v)]
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return [(key, DASH if value is None or value == "" else str(value))]
