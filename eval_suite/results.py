"""Rows of results.json from per-sample predictions (schema in the README)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from eval_suite.scorers.conflict import OUTCOMES
from factory.statistics.intervals import wilson

Prediction = Mapping[str, Any]


def result_rows(predictions: Sequence[Prediction], **context: object) -> list[dict[str, Any]]:
    """One row per split, task (and "all"), direction, method and strength, in order of first appearance.

    A prediction has sample, task, split, direction, method, strength, outcome, verdicts (one per form), chosen and
    prompt_hash (of all prompts of its method). ``ci`` are 95 % Wilson intervals over samples; ``parse_failure_rate``
    is the share of single answers whose verdict was an error. ``context`` is added to each row.
    """
    cells: dict[tuple, list[Prediction]] = defaultdict(list)
    for p in predictions:
        for task in (p["task"], "all"):
            cells[p["split"], task, p["direction"], p["method"], p["strength"]].append(p)
    return [_row(key, members, context) for key, members in cells.items()]


def _row(key: tuple, members: Sequence[Prediction], context: Mapping[str, object]) -> dict[str, Any]:
    split, task, direction, method, strength = key
    n = len(members)
    counts = {name: sum(m["outcome"] == name for m in members) for name in OUTCOMES}
    verdicts = [verdict for m in members for verdict in m["verdicts"]]
    return {
        "split": split,
        "task": task,
        "direction": direction,
        "method": method,
        "strength": strength,
        "n": n,
        "metrics": {name: count / n for name, count in counts.items()},
        "ci": {name: list(wilson(count, n)) for name, count in counts.items()},
        "parse_failure_rate": verdicts.count("error") / len(verdicts),
        "chosen": members[0]["chosen"],
        "variant": members[0]["variant"],
        "prompt_hash": members[0]["prompt_hash"],
        **context,
    }
