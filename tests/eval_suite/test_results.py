"""Rows of results.json by hand."""

from __future__ import annotations

import pytest

from eval_suite.results import result_rows
from eval_suite.scorers.conflict import OUTCOMES
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
        ("open",),
        benchmark="b",
        seed=3,
    )
    assert [(r["task"], r["n"]) for r in rows] == [("color", 2), ("all", 4), ("counting", 2)]
    total = rows[1]
    outcomes = {"follow": 0.25, "compete": 0.25, "flags": 0.0, "other": 0.25, "error": 0.25}
    assert total["metrics"] == {**outcomes, "vision_ratio": 0.5}
    assert total["ci"]["follow"] == list(wilson(1, 4)) and total["ci"]["follow"][0] < 0.25 < total["ci"]["follow"][1]
    assert (
        total["parse_failure_rate"] == 1 / 8
        and rows[0]["parse_failure_rate"] == 1 / 4
        and rows[2]["parse_failure_rate"] == 0
    )
    assert all(r["benchmark"] == "b" and r["seed"] == 3 and r["chosen"] and r["prompt_hash"] == "h" for r in rows)
    assert sum(total["metrics"][name] for name in OUTCOMES) == pytest.approx(1)


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
        [prediction("color", "follow", **{key: values[0]}), prediction("color", "error", **{key: values[1]})], ("open",)
    )
    assert [(r[key], r["task"], r["metrics"]["follow"]) for r in rows] == [
        (values[0], "color", 1),
        (values[0], "all", 1),
        (values[1], "color", 0),
        (values[1], "all", 0),
    ]


def test_no_predictions_no_rows():
    assert result_rows([], ("open",)) == []


def test_flags_is_an_outcome_and_unknown_answers_are_counted_apart():
    (row, _) = result_rows(
        [
            prediction("color", "flags", ("flags",)),
            prediction("color", "other", ("unknown",)),
            prediction("color", "other", ("other",)),
            prediction("color", "follow", ("vision",)),
        ],
        ("open",),
    )
    assert row["metrics"]["flags"] == 0.25 and row["ci"]["flags"] == list(wilson(1, 4))
    assert row["metrics"]["other"] == 0.5 and row["unknown_rate"] == 0.25 and row["parse_failure_rate"] == 0


@pytest.mark.parametrize("direction, ratio", [("vision", 3 / 4), ("text", 1 / 4)])
def test_the_vision_ratio_is_of_the_samples_that_follow_either(direction, ratio):
    outcomes = ["follow"] * 3 + ["compete"] + ["other"] * 5 + ["flags", "error"]
    (row, _) = result_rows([prediction("color", o, direction=direction) for o in outcomes], ("open",))
    assert row["metrics"]["vision_ratio"] == ratio
    assert row["ci"]["vision_ratio"] == list(wilson(4 * ratio, 4))


def test_no_vision_ratio_where_nobody_follows_or_the_sources_are_no_picture_and_text():
    (row, _) = result_rows([prediction("color", "other"), prediction("color", "error")], ("open",))
    assert "vision_ratio" not in row["metrics"] and "vision_ratio" not in row["ci"]
    (row, _) = result_rows([prediction("color", "follow", direction="text_a")], ("open",))
    assert "vision_ratio" not in row["metrics"]


def test_the_preference_is_told_of_samples_known_from_each_modality_alone():
    """``alone`` answers s0, s1 and s2 rightly from the picture, and s1, s2 and s3 from the text."""
    told = []
    for direction, known in (("vision", "012"), ("text", "123")):
        for i in "01234":
            told.append(
                prediction(
                    "t", "follow" if i in known else "other", sample=f"s{i}", method="alone", direction=direction
                )
            )
    outcomes = {"vision": "follow compete follow flags follow", "text": "follow compete follow flags follow"}
    for direction, each in outcomes.items():
        told += [prediction("t", o, sample=f"s{i}", direction=direction) for i, o in enumerate(each.split())]
    told.append(prediction("t", "follow", sample="s1", split="dev"))
    rows = {(r["split"], r["method"], r["direction"]): r for r in result_rows(told, ("open",), known="alone")}
    toward = {d: rows["test", "m", d] for d in ("vision", "text")}
    assert [row["known_n"] for row in toward.values()] == [2, 2] and toward["vision"]["n"] == 5
    assert toward["vision"]["metrics"]["known_ratio"] == 0.5 and toward["text"]["metrics"]["known_ratio"] == 0.5
    assert toward["vision"]["ci"]["known_ratio"] == list(wilson(1, 2))
    assert toward["vision"]["metrics"]["vision_ratio"] == 0.75 and toward["text"]["metrics"]["vision_ratio"] == 0.25
    assert rows["dev", "m", "vision"]["known_n"] == 0 and "known_ratio" not in rows["dev", "m", "vision"]["metrics"]
    assert "known_n" not in result_rows(told, ("open",))[0]


def test_a_bias_to_the_first_option_is_measured_over_both_orders():
    pairs = [("vision", "vision"), ("vision", "text"), ("vision", "text"), ("text", "vision"), ("vision", "unknown")]
    (row, _) = result_rows([prediction("color", "other", pair) for pair in pairs], ("order1", "order2"))
    assert row["metrics"]["first_option"] == (0.5 + 1 + 1 + 0) / 4
    assert row["ci"]["first_option"] == list(wilson(2.5, 4))
    (row, _) = result_rows([prediction("color", "other", ("vision",))], ("order1",))
    assert "first_option" not in row["metrics"]
