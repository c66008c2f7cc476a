"""Rows of results.json by hand."""

from __future__ import annotations

import pytest

from eval_suite.results import result_rows
from factory.statistics.intervals import wilson


def prediction(task: str, outcome: str, verdicts=("vision", "vision"), **keys) -> dict:
    same = {
        "split": "test",
        "direction": "vision",
        "method": "m",
        "strength": 1.0,
        "variant": "",
        "chosen": True,
        "prompt_hash": "h",
    }
    return {"sample": "s", "task": task, "outcome": outcome, "verdicts": list(verdicts), **same, **keys}


def test_shares_intervals_and_context():
    rows = result_rows(
        [
            prediction("color", "follow"),
            prediction("color", "error", ("error", "vision")),
            prediction("counting", "compete"),
            prediction("counting", "other"),
        ],
        benchmark="b",
        seed=3,
    )
    assert [(r["task"], r["n"]) for r in rows] == [("color", 2), ("all", 4), ("counting", 2)]
    total = rows[1]
    assert total["metrics"] == {"follow": 0.25, "compete": 0.25, "other": 0.25, "error": 0.25}
    assert total["ci"]["follow"] == list(wilson(1, 4)) and total["ci"]["follow"][0] < 0.25 < total["ci"]["follow"][1]
    assert (
        total["parse_failure_rate"] == 1 / 8
        and rows[0]["parse_failure_rate"] == 1 / 4
        and rows[2]["parse_failure_rate"] == 0
    )
    assert all(r["benchmark"] == "b" and r["seed"] == 3 and r["chosen"] and r["prompt_hash"] == "h" for r in rows)
    assert sum(total["metrics"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "key, values",
    [
        ("split", ("dev", "test")),
        ("direction", ("vision", "text")),
        ("method", ("m", "n")),
        ("strength", (1.0, 2.0)),
        ("strength", (None, 1.0)),
    ],
)
def test_cells_are_kept_apart(key, values):
    rows = result_rows(
        [prediction("color", "follow", **{key: values[0]}), prediction("color", "error", **{key: values[1]})]
    )
    assert [(r[key], r["task"], r["metrics"]["follow"]) for r in rows] == [
        (values[0], "color", 1),
        (values[0], "all", 1),
        (values[1], "color", 0),
        (values[1], "all", 0),
    ]


def test_no_predictions_no_rows():
    assert result_rows([]) == []
