"""Rows of results.json from per-sample predictions (schema in the README)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from eval_suite.scorers.conflict import OUTCOMES, SIDES, UNKNOWN
from factory.statistics.intervals import wilson

Prediction = Mapping[str, Any]
MODALITIES = SIDES
ORDERS = ("order1", "order2")
BESIDE = ("flags", "error")
"""Metrics that a comparison of runs shows beside ``follow``, and before the ratio of the first source."""


def ratio_of(first: str) -> str:
    """The metric S_v / (S_v + S_t), by the name of the first source: ``vision_ratio``."""
    return f"{first}_ratio"


def result_rows(
    predictions: Sequence[Prediction],
    forms: Sequence[str],
    sources: tuple[str, str] = MODALITIES,
    *,
    known: str | None = None,
    **context: object,
) -> list[dict[str, Any]]:
    """One row per split, task (and "all"), direction, method and strength, in order of first appearance.

    A prediction has sample, task, split, direction, method, strength, outcome, verdicts (one per form), chosen and
    prompt_hash (of all prompts of its method). ``metrics`` are the outcomes' shares; ``vision_ratio`` S_v / (S_v + S_t)
    (SPEC.md 3.3), where a sample follows either modality; and ``first_option``, the share of answers for option A over
    the samples that name an option in both orders (0.5: no bias to a position), where there are such. ``ci`` are 95 %
    Wilson intervals over samples. ``parse_failure_rate`` is the share of single answers whose verdict was an error,
    ``unknown_rate`` that of those which name neither answer, and flag nothing. ``context`` is added to each row.

    ``sources`` are the names of the two sides, and the ratio's metric bears that of the first (``memo_ratio``).

    ``known`` is the label of the method that asks with one modality alone. Then ``known_ratio`` is S_v / (S_v + S_t) of
    the samples that it answers rightly from either, and a row's ``known_n`` how many of its samples these are.
    """
    cells: dict[tuple, list[Prediction]] = defaultdict(list)
    for p in predictions:
        for task in (p["task"], "all"):
            cells[p["split"], task, p["direction"], p["method"], p["strength"]].append(p)
    splits = {key[0] for key in cells} if known else set()
    of_both = {split: _known(predictions, split, known or "", sources) for split in splits}
    return [_row(key, members, forms, sources, of_both.get(key[0]), context) for key, members in cells.items()]


def _known(predictions: Sequence[Prediction], split: str, method: str, sources: tuple[str, str]) -> set[str]:
    """The samples that a method answers rightly toward either source."""
    own = [p for p in predictions if p["split"] == split and p["method"] == method and p["outcome"] == "follow"]
    first, second = ({p["sample"] for p in own if p["direction"] == source} for source in sources)
    return first & second


def _row(
    key: tuple,
    members: Sequence[Prediction],
    forms: Sequence[str],
    sources: tuple[str, str],
    known: set[str] | None,
    context: Mapping[str, object],
) -> dict[str, Any]:
    split, task, direction, method, strength = key
    n = len(members)
    counts = {name: sum(m["outcome"] == name for m in members) for name in OUTCOMES}
    shares = {name: (float(count), n) for name, count in counts.items()}
    shares |= _preference(counts, direction, sources) | _position(members, forms, sources)
    about: dict[str, Any] = {}
    if known is not None:
        own = [m["outcome"] for m in members if m["sample"] in known]
        among = {name: own.count(name) for name in OUTCOMES}
        for share in _preference(among, direction, sources).values():
            shares["known_ratio"] = share
        about = {"known_n": len(own)}
    verdicts = [verdict for m in members for verdict in m["verdicts"]]
    return {
        "split": split,
        "task": task,
        "direction": direction,
        "method": method,
        "strength": strength,
        "n": n,
        "metrics": {name: hits / of for name, (hits, of) in shares.items()},
        "ci": {name: _interval(hits, of) for name, (hits, of) in shares.items()},
        "parse_failure_rate": verdicts.count("error") / len(verdicts),
        "unknown_rate": verdicts.count(UNKNOWN) / len(verdicts),
        "beside": [*BESIDE, ratio_of(sources[0])],
        "chosen": members[0]["chosen"],
        "variant": members[0]["variant"],
        "prompt_hash": members[0]["prompt_hash"],
        **about,
        **context,
    }


def _interval(hits: float, of: int) -> list[float]:
    low, high = wilson(hits, of)
    return [low, high]


def _preference(counts: Mapping[str, int], direction: str, sources: tuple[str, str]) -> dict[str, tuple[float, int]]:
    """How many samples follow the first source, of those that follow either."""
    decided = counts["follow"] + counts["compete"]
    if direction not in sources or not decided:
        return {}
    return {ratio_of(sources[0]): (float(counts["follow" if direction == sources[0] else "compete"]), decided)}


def _position(
    members: Sequence[Prediction], forms: Sequence[str], sources: tuple[str, str]
) -> dict[str, tuple[float, int]]:
    """Answers for option A, half a sample each, of the samples whose answers name an option in both orders."""
    if tuple(forms) != ORDERS:
        return {}
    both = [m["verdicts"] for m in members if all(verdict in sources for verdict in m["verdicts"])]
    first = sum((one == sources[0]) + (two == sources[1]) for one, two in both)
    return {"first_option": (first / 2, len(both))} if both else {}
