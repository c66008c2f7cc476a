"""Whether a predictor tells which samples flip and which break: planted relations are found, absent ones are not
claimed.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval_suite.report import explain as explaining
from eval_suite.report.explain import first_strengths, mean_auroc, measured
from factory.data.sources import PICTURE_AND_TEXT
from plugins.diagnostics.mcr.summary import PREDICTOR
from plugins.diagnostics.relative_uncertainty.story import predictors

N = 60
STRENGTHS = (0.5, 1.0, 2.0)

PREDICTORS = predictors(PICTURE_AND_TEXT)


def explain(diagnostics: list[dict], predictions: list[dict], unsteered: str, offered=(*PREDICTORS, PREDICTOR)) -> list:
    return explaining.explain(diagnostics, predictions, unsteered, offered)


def prediction(
    method: str, sample: int, outcome: str, strength: float | None, direction: str = "text", split: str = "test"
) -> dict:
    return {
        "method": method,
        "direction": direction,
        "split": split,
        "sample": f"s{sample}",
        "task": "color",
        "strength": strength,
        "outcome": outcome,
    }


def diagnosed(metric: str, values: np.ndarray, **more: object) -> list[dict]:
    about = {"layer": None, "head": None, "split": "test", "prompt": "base", "form": "open", "metric": metric, **more}
    return [{**about, "sample": f"s{i}", "value": float(v)} for i, v in enumerate(values)]


def planted(direction: str = "text") -> tuple[list[dict], np.ndarray]:
    """Samples below -0.5 flip at 0.5, those below 0 at 1, those below 0.5 at 2; the rest never. Those above 0.7 break
    at 2.
    """
    dH = np.linspace(-1, 1, N)
    out = [prediction("none", i, "compete", None, direction) for i in range(N)]
    for s, limit in zip(STRENGTHS, (-0.5, 0.0, 0.5), strict=True):
        out += [
            prediction("l2s", i, "follow" if x < limit else "error" if s == 2 and x > 0.7 else "compete", s, direction)
            for i, x in enumerate(dH)
        ]
    return out, dH


def table(summaries) -> dict[tuple, dict]:
    (summary,) = summaries
    json.dumps(summary.record(), allow_nan=False)
    t = summary.tables[0]
    return {(row[2], row[3]): dict(zip(t.columns, row, strict=True)) for row in t.rows}


@pytest.mark.parametrize("direction, sign", [("text", 1), ("vision", -1)])
def test_a_planted_law_is_found_in_either_direction(direction, sign):
    predictions, dH = planted(direction)
    noise = np.random.default_rng(0).random(N)
    rows = table(explain(diagnosed("dH_rel", sign * dH) + diagnosed("confidence", noise), predictions, "none"))
    flips = rows["flips", "relative uncertainty of the target"]
    assert flips["n"] == N and flips["events"] == sum(dH < 0.5) and flips["AUROC"] == 0 and flips["AUROC high"] < 0.05
    assert flips["rank correlation"] > 0.9 and flips["rank correlation low"] > 0.8
    breaks = rows["breaks", "relative uncertainty of the target"]
    assert breaks["events"] == sum(dH > 0.7) and breaks["AUROC"] == 1
    assert rows["flips", "confidence"]["AUROC low"] < 0.5 < rows["flips", "confidence"]["AUROC high"]


def test_a_metric_that_no_diagnostic_offers_predicts_nothing():
    predictions, dH = planted()
    assert explain(diagnosed("R_V", dH), predictions, "none", offered=PREDICTORS) == []


def test_the_mcr_is_the_target_modalitys():
    predictions, dH = planted("text")
    rows = table(explain(diagnosed("R_V", (1 - dH) / 2), predictions, "none"))
    assert rows["flips", "MCR of the target"]["AUROC"] == 0


def test_the_least_strength_counts_and_only_samples_that_can():
    base = {"a": "compete", "b": "follow", "c": "error"}
    runs = [
        {"sample": s, "strength": k, "outcome": o}
        for s, k, o in [
            ("a", 2.0, "follow"),
            ("a", 1.0, "follow"),
            ("b", 1.0, "error"),
            ("c", 0.5, "follow"),
            ("a", 0.5, "error"),
        ]
    ]
    assert first_strengths(runs, base, "flips") == {"a": 1.0, "c": 0.5}
    assert first_strengths(runs, base, "breaks") == {"a": 0.5, "b": 1.0}


def test_a_flagged_conflict_can_flip_and_break():
    base = {"a": "flags", "b": "flags"}
    runs = [{"sample": s, "strength": 1.0, "outcome": o} for s, o in (("a", "follow"), ("b", "error"))]
    assert first_strengths(runs, base, "flips")["a"] == first_strengths(runs, base, "breaks")["b"] == 1.0


def test_only_test_samples_on_the_plain_prompt_count_and_forms_are_averaged():
    rows = (
        diagnosed("R_V", np.array([0.2]))
        + diagnosed("R_V", np.array([0.4]), form="other")
        + diagnosed("R_V", np.array([9.0]), prompt="vision")
    )
    found = measured(rows + diagnosed("R_V", np.array([5.0]), split="dev"), ["R_V", "dH_rel"])
    assert found == {"R_V": {"s0": pytest.approx(0.3)}}


def test_where_nothing_was_measured_nothing_is_said():
    predictions, dH = planted()
    assert explain([], predictions, "none") == [] and explain(diagnosed("dH_rel", dH), [], "none") == []
    unswept = [{**p, "strength": None} for p in predictions]
    assert explain(diagnosed("dH_rel", dH), unswept, "none") == []
    assert explain(diagnosed("dH_rel", dH), [p for p in predictions if p["sample"] in ("s0", "s59")], "none") == []


def test_the_mean_over_methods_draws_the_same_samples_for_all():
    """Two methods that agree on every sample are no more evidence than one: mean and interval are those of either
    alone.
    """
    rng = np.random.default_rng(1)
    x = rng.normal(size=80)
    cell = {f"s{i}": (float(v), bool(v + rng.normal() > 0)) for i, v in enumerate(x)}
    alone, twice = mean_auroc([cell]), mean_auroc([cell, dict(reversed(cell.items()))])
    pairs = [(a > b) + 0.5 * (a == b) for a, yes in cell.values() if yes for b, no in cell.values() if not no]
    assert alone[0] == pytest.approx(np.mean(pairs)) and twice == pytest.approx(alone[0:1] + (pytest.approx(alone[1]),))
    assert alone[1][0] < alone[0] < alone[1][1] and alone[1][1] - alone[1][0] < 0.4
    half = {s: v for s, v in cell.items() if int(s[1:]) < 40}
    assert mean_auroc([cell, half])[0] == pytest.approx((alone[0] + mean_auroc([half])[0]) / 2)


def test_the_summary_says_each_predictors_mean_with_its_interval():
    predictions, dH = planted()
    (summary,) = explain(
        diagnosed("dH_rel", dH) + diagnosed("confidence", np.random.default_rng(0).random(N)), predictions, "none"
    )
    flips = summary.findings[0]
    assert (
        list(flips.values) == ["relative uncertainty of the target", "confidence"]
        and flips.values["relative uncertainty of the target"]["auroc"] == 0
    )
    assert "relative uncertainty of the target 0.00 [0.00, 0.00], confidence" in flips.text
    assert summary.figures[0].name == "explained"
