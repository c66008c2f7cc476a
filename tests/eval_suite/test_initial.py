"""Samples that start with the other modality: who turns and who breaks, counted by hand."""

from __future__ import annotations

import csv

import pytest

from eval_suite.report import build, initial
from eval_suite.report.rows import Predictions, groups
from tests.eval_suite.synthetic_report import RECIPE, results_of, synthetic

UNSTEERED = {"a": "compete", "b": "follow", "c": "compete", "d": "error", "e": "compete"}
AT_1 = {"a": "follow", "b": "error", "c": "compete", "d": "follow", "e": "other"}
AT_4 = {"a": "error", "b": "error", "c": "follow", "d": "error"}  # e has no answer


def records(direction: str, method: str, strength: float | None, outcomes: dict, split: str = "test") -> list[dict]:
    about = {"task": "color", "split": split, "method": method, "direction": direction, "strength": strength}
    return [{**about, "sample": sample, "outcome": outcome, "answers": ["red"]} for sample, outcome in outcomes.items()]


@pytest.fixture(scope="module")
def small() -> list[dict]:
    return [
        *records("vision", "none", None, UNSTEERED),
        *records("vision", "static", 1.0, AT_1),
        *records("vision", "static", 4.0, AT_4),
    ]


def test_only_samples_that_start_with_the_other_modality_are_counted(small):
    (group,) = groups(results_of(small))
    split, found = initial.turned(group, Predictions(small))
    assert split == "test"
    assert found == [("vision", "static", 1.0, 3, 1, 1, 0), ("vision", "static", 4.0, 2, 1, 0, 1)]


def test_without_an_unsteered_answer_or_a_second_strength_nothing_is_told(small):
    for kept in (small[5:], small[:10]):
        (group,) = groups(results_of(kept))
        assert initial.turned(group, Predictions(kept)) == (None, [])
        assert initial.to_csv(results_of(kept), Predictions(kept)) is None


def test_the_report_draws_both_directions_and_writes_the_counts(tmp_path):
    results, diagnostics, predictions = synthetic(per_task=4)
    build(tmp_path, results, diagnostics, predictions, RECIPE)
    assert (tmp_path / "report" / "figures" / "turned.png").stat().st_size > 1000
    lines = list(csv.DictReader((tmp_path / "report" / "turned.csv").read_text().splitlines()))
    assert {line["Towards"] for line in lines} == {"vision", "text"}
    start = {
        p["sample"]
        for p in predictions
        if (p["split"], p["method"], p["direction"], p["outcome"]) == (lines[0]["Split"], "none", "text", "compete")
    }
    followed = [
        p["outcome"] == "follow"
        for p in predictions
        if (p["method"], p["direction"], p["strength"]) == ("l2s", "text", 2.0) and p["sample"] in start
    ]
    (line,) = [x for x in lines if (x["Towards"], x["Method"], x["Strength"]) == ("text", "l2s", "2.0")]
    assert (int(line["n"]), int(line["Follow"])) == (len(followed), sum(followed))
