"""Reading what lm-eval and lmms-eval write."""

from __future__ import annotations

import pytest

from eval_suite.bridges.results import measured, record


def test_metrics_of_several_filters_stay_apart():
    found = {
        "alias": "gsm8k",
        "exact_match,strict-match": 0.25,
        "exact_match_stderr,strict-match": 0.1,
        "exact_match,flexible-extract": 0.5,
        "exact_match_stderr,flexible-extract": "N/A",
        "exact_match_stderr_clt,strict-match": 0.3,
    }
    metrics, ci = measured(found)
    assert metrics == {"exact_match": 0.25, "exact_match (flexible-extract)": 0.5}
    assert ci == {"exact_match": pytest.approx([0.054, 0.446], abs=1e-3)}


@pytest.mark.parametrize(("given", "value"), [(1, 1.0), ("0.5", 0.5), ({"pred": "x"}, None), (None, None)])
def test_a_question_without_a_number_of_its_own_has_none(given, value):
    assert record({"doc_id": 3, "acc": given, "target": 1}, "acc", "h")["value"] == value
    assert record({"doc_id": 3}, "acc", "h")["sample"] == "3"
