"""Reading what lm-eval and lmms-eval write."""

from __future__ import annotations

import pytest

from eval_suite.bridges.results import measured, record
from eval_suite.bridges.task_files import made_of


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


def test_task_files_and_the_data_that_they_name_are_what_questions_are_made_of(tmp_path):
    """A harness reads them anew at each start, and a stage's inputs must say when they are others."""
    tasks, data, saved = tmp_path / "tasks", tmp_path / "data.jsonl", tmp_path / "saved"
    saved.mkdir()
    for path in (data, saved / "dataset_info.json", saved / "x.arrow"):
        path.write_text("1")
    inner = tasks / "inner"
    inner.mkdir(parents=True)
    (inner / "utils.py").write_text("a = 1")
    (tasks / "t.yaml").write_text(
        f"task: t\nprocess: !function inner.utils.f\ndataset_path: {saved}\ndataset_kwargs: {{data_files: {{test:"
        f" {data}}}}}\ndoc_to_text: '{{{{question}}}}'\n"
    )
    (tasks / "broken.yaml").write_text("a: [1")
    assert made_of(None) is None
    before = made_of(str(tasks))
    assert made_of(str(tasks)) == before and len(before) == 6
    for path in (data, saved / "x.arrow", inner / "utils.py", tasks / "t.yaml"):
        kept = path.read_text()
        path.write_text(kept + " ")
        assert made_of(str(tasks)) != before, path
        path.write_text(kept)
    assert made_of(str(tasks)) == before
