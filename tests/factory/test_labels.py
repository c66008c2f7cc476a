"""A run's two labels: whatever the unsteered model and the reference are called, nothing is lost."""

from __future__ import annotations

import json

import pytest

from factory.cli import main
from factory.recipe import load, loads
from factory.run import pipeline
from factory.run.labels import Labels, labels
from tests.tiny import saved_tiny

RECIPE = """\
name: {name}
model: {{path: {home}/model, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 2, dev: 1, test: 2}}}}
collect: {{batch_size: 16}}
steering: [{none}, static, {{type: l2s, {called}net: {{epochs: 1}}}}]
evaluate: {{controls: [], directions: [vision], strengths: [0.5, 1], batch_size: 16, max_new_tokens: 2, cost: true}}
benchmarks: [{{type: plain_scenes, per_task: 1}}]
run: {{root: {home}/runs}}
report: {{plots: false}}
"""
OLD, NEW = {"plain": "none", "learn": "l2s"}, {"none": "plain", "l2s": "learn"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    saved_tiny(home / "model")
    (home / "usual.yaml").write_text(RECIPE.format(name="usual", home=home, none="none", called=""))
    (home / "renamed.yaml").write_text(
        RECIPE.format(name="renamed", home=home, none="{type: none, as: plain}", called="as: learn, ")
    )
    return home


@pytest.fixture(scope="module")
def runs(home):
    return {name: pipeline.run(load(home / f"{name}.yaml")) for name in ("usual", "renamed")}


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_renaming_loses_no_row_and_changes_no_number(runs):
    usual, renamed = (results(runs[name]) for name in ("usual", "renamed"))
    label = lambda method: ":".join(OLD.get(part, part) for part in method.split(":"))
    assert {r["method"] for r in usual["rows"]} == {"none", "static", "l2s", "oracle:l2s"}
    assert [{**r, "method": label(r["method"])} for r in renamed["rows"]] == usual["rows"]
    named = {name: (r["run"]["unsteered"], r["run"]["reference"]) for name, r in (("u", usual), ("r", renamed))}
    assert named == {"u": ("none", "l2s"), "r": ("plain", "learn")}


def test_renaming_loses_no_test_no_cost_ratio_and_no_sentence(runs):
    pages = {name: (folder / "report" / "index.html").read_text() for name, folder in runs.items()}
    assert "unsteered model" in pages["usual"]
    for word in ("unsteered model", "no clear difference", "follows more", "follows less", "was not scored", "—"):
        assert pages["usual"].count(word) == pages["renamed"].count(word), word
    ratios = {}
    for name, folder in runs.items():
        (path,) = (folder / "report").rglob("cost.csv")
        rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
        ratios[name] = {OLD.get(row[0], row[0]): (row[3], row[5]) for row in rows}
    assert ratios["usual"].keys() == ratios["renamed"].keys()
    for given in ratios.values():
        assert float(given["none"][0]) == 1.0 and all(ratio and extra for ratio, extra in given.values())


def test_a_renamed_run_is_compared_with_the_other(runs, tmp_path):
    assert main(["compare", *(str(folder) for folder in runs.values()), "--out", str(tmp_path / "out")]) == 0
    rows = [line.split(",") for line in (tmp_path / "out" / "compare.csv").read_text().splitlines()]
    at = rows[0].index("reference")
    tested = {(row[0], row[1], row[at]) for row in rows[1:]}
    assert {("usual", "l2s", "none"), ("renamed", "learn", "plain"), ("renamed", "plain", "usual")} <= tested


def test_the_recipe_may_name_the_reference(home):
    run = pipeline.run(load(home / "usual.yaml", ["evaluate.reference=static", "benchmarks=[]", "evaluate.cost=false"]))
    found = results(run)
    assert found["run"]["reference"] == "static"
    assert {r["method"] for r in found["rows"] if r["method"].startswith("oracle:")} == {"oracle:static"}


def test_a_reference_that_is_no_method_is_refused_with_a_suggestion(home, capsys):
    assert main([str(home / "usual.yaml"), "evaluate.reference=statik"]) == 2
    told = capsys.readouterr().err.strip()
    assert "evaluate.reference" in told and "Did you mean static?" in told and "\n" not in told


def test_where_no_method_changes_nothing_the_model_has_a_free_name():
    def of(steering: str) -> Labels:
        data = "data: {type: scenes}\nmodel: {zoo: tiny}\n"
        return labels(loads(f"name: x\n{data}steering: {steering}\n"))

    assert of("[static]") == Labels("none", None)
    assert of("[{type: static, as: none}]") == Labels("unsteered", None)
    assert of("[{type: none, as: plain}, {type: l2s, as: a}, {type: l2s, as: b}]") == Labels("plain", "a")


def test_a_control_stands_beside_each_method_that_it_is_the_control_of():
    recipe = """
name: controlled
model: {zoo: tiny}
data: scenes
diagnostics: [heads]
steering: [none, static, heads, {type: heads, as: chance, heads: random}, {type: heads, as: shared, heads: shared}%s]
"""
    own = {"heads": "chance", "shared": "chance"}
    assert labels(loads(recipe % "", "r.yaml")).controls == own
    assert labels(loads(recipe % ", random_vector", "r.yaml")).controls == {"static": "random_vector", **own}
