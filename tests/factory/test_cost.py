"""A run with decoding-time methods and costs: what they work, and that results.json knows nothing of seconds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from factory import cli
from factory.recipe import load
from factory.run import pipeline, rundir
from factory.run.methods.cost import decoder_work
from tests.contract.cases import answers
from tests.tiny import conflict_prompts, saved_tiny, tiny_view

MEASURED = ("seconds an answer", "passes an answer", "decoder tokens an answer")
RECIPE = """\
name: costs
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 2, dev: 1, test: 1}}}}
diagnostics: [relative_uncertainty, liae]
steering: [
  none, static, vcd, {{type: causalmm, levels: both}}, dleaf, {{type: dsas, of: {{type: static}}}},
  {{type: pixel, clip: [0, 0.1]}}
]
evaluate: {{controls: [], strengths: [0.5, 1], batch_size: 16, max_new_tokens: 2, cost: true}}
run: {{root: {root}}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("costs")
    recipe = root / "costs.yaml"
    recipe.write_text(RECIPE.format(folder=saved_tiny(root / "model"), root=root / "runs"))
    return pipeline.run(load(recipe))


def test_copies_cost_a_forward_each_and_vectors_none(finished):
    lines = (finished / "report" / "cost.csv").read_text().splitlines()
    assert lines[0].startswith("method,toward,seconds an answer")
    extra = {tuple(line.split(",")[:2]): float(line.split(",")[-1]) for line in lines[1:]}
    assert len(extra) == 7 * 2
    for direction in ("vision", "text"):
        assert (
            extra["none", direction] == 0
            and abs(extra["static", direction]) < 0.05
            and abs(extra["dsas", direction]) < 0.05
        )
        assert extra["vcd", direction] == pytest.approx(1, abs=0.05) and extra["causalmm", direction] == pytest.approx(
            2, abs=0.05
        )


def test_seconds_stay_out_of_the_results(finished):
    results = json.loads((finished / "results.json").read_text())
    told = {"relative_uncertainty", "liae", "beside-random"}
    assert "seconds" not in json.dumps(results) and set(results["diagnostics"]) == told
    assert {(r["method"], r["strength"]) for r in results["rows"]} >= {
        ("vcd", 0.5),
        ("vcd", 1.0),
        ("dleaf", 0.5),
        ("causalmm", 1.0),
    }


def test_a_comparison_of_runs_shows_what_the_methods_cost(finished, tmp_path):
    """Two new tokens: a pass over the prompt and one more, which VCD takes a second time and CausalMM a third."""
    rows = list(csv.DictReader((finished / "report" / "cost.csv").read_text().splitlines()))
    told = {(r["method"], r["toward"]): [float(r[k]) for k in MEASURED] for r in rows}
    prices = json.loads((finished / "costs.json").read_text())
    assert {key for key in prices} == {f"scenes/{method}-{direction}" for method, direction in told}
    assert cli.main(["compare", str(finished), "--out", str(tmp_path)]) == 0
    shown = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    columns = ("seconds_per_answer", "passes_per_answer", "tokens_per_answer")
    compared = {(r["method"], r["direction"]): [float(r[k]) for k in columns] for r in shown if r["passes_per_answer"]}
    assert compared == {key: pytest.approx(values, rel=1e-3) for key, values in told.items()}
    passes = {method: values[1] for (method, direction), values in told.items() if direction == "vision"}
    assert passes["none"] == passes["static"] == 2 and passes["vcd"] == 4 and passes["causalmm"] == 6
    assert "passes/answer" in (tmp_path / "compare.md").read_text()


def test_a_finished_run_measures_nothing_again(finished):
    before = (finished / "report" / "cost.csv").read_text()
    with rundir.watched_stores(lambda stage, key: pytest.fail(f"{stage.name}/{key} was computed again")):
        pipeline.run(load(finished / "recipe.yaml"))
    assert (finished / "report" / "cost.csv").read_text() == before


def test_work_is_counted_in_tokens_of_every_block():
    view, prompts = tiny_view(), conflict_prompts(2)
    width = view.encode(prompts).input_ids.shape[1]
    with decoder_work(view) as calls:
        tokens = answers(view, prompts, n=3)
    assert sum(call.tokens for call in calls) == view.depth * 2 * (width + len(tokens[0]) - 1)
    assert sum(call.rows for call in calls) == view.depth * 2 * len(tokens[0])
    with decoder_work(view) as calls:
        pass
    assert calls == []
