"""Choices made on dev data, and the upper bound that peeks at test labels (and says so)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factory.steer.base import Direction

Prediction = Mapping[str, Any]
RANK = {"follow": 0, "flags": 1, "other": 1, "compete": 1, "error": 2}


@dataclass(frozen=True)
class Choice:
    """The variant and strength of one method toward one direction, and what they scored on dev."""

    method: str
    direction: str
    variant: str
    strength: float
    follow: float
    error: float
    within_budget: bool


def outcome_share(predictions: Sequence[Prediction], outcome: str) -> float:
    return sum(p["outcome"] == outcome for p in predictions) / len(predictions)


def choose(dev: Sequence[Prediction], budget: float, unsteered: str) -> list[Choice]:
    """For each method and direction the variant and strength that follow most within an error ``budget``.

    The budget is the share of errors added to those of the model itself (method ``unsteered``) on the same samples;
    where every cell exceeds it, the one with the fewest errors is taken and marked. Ties go to the smaller strength.
    """
    return [choices[0] for choices in ranked(dev, budget, unsteered).values()]


def ranked(dev: Sequence[Prediction], budget: float, unsteered: str) -> dict[tuple[str, Direction], list[Choice]]:
    """Of each method and direction all that ``choose`` would choose among, the best first."""
    cells: dict[tuple, list[Prediction]] = defaultdict(list)
    for p in dev:
        cells[p["method"], p["direction"], p["variant"], p["strength"]].append(p)
    base = {d: outcome_share(rows, "error") for (method, d, _, _), rows in cells.items() if method == unsteered}
    found: dict[tuple[str, Direction], list[Choice]] = defaultdict(list)
    for (method, direction, variant, strength), rows in cells.items():
        if strength is None:
            continue
        error = outcome_share(rows, "error")
        choice = Choice(
            method,
            direction,
            variant,
            strength,
            outcome_share(rows, "follow"),
            error,
            error <= base[direction] + budget,
        )
        found[method, direction].append(choice)
    return {key: sorted(choices, key=_merit, reverse=True) for key, choices in found.items()}


def _merit(c: Choice) -> tuple:
    return (c.within_budget, c.follow if c.within_budget else -c.error, -c.error, -abs(c.strength))


def oracle(predictions: Sequence[Prediction], method: str, unsteered: str) -> list[dict[str, Any]]:
    """Each sample's best outcome over the strengths of ``method`` and no steering at all (method ``unsteered``), chosen
    with its label: an upper bound.
    """
    best: dict[tuple, Prediction] = {}
    for p in predictions:
        key = (p["sample"], p["direction"])
        if p["method"] in (method, unsteered) and (key not in best or RANK[p["outcome"]] < RANK[best[key]["outcome"]]):
            best[key] = p
    swept = {p["direction"] for p in predictions if p["method"] == method and p["strength"] is not None}
    return [
        {**p, "method": f"oracle:{method}", "strength": None, "variant": ""}
        for p in best.values()
        if p["direction"] in swept
    ]
