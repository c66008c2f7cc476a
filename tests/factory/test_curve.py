"""``evaluate.curve``: test at the chosen strengths, curves from a share of it, and nothing asked twice."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from eval_suite.report.rows import groups
from eval_suite.report.tables import main_tables
from factory.cli import main
from factory.recipe import load
from factory.run import pipeline
from factory.run.labels import CURVE
from factory.run.plan.estimate import estimate
from tests.tiny import saved_tiny

RECIPE = """\
name: small
model: {{path: {home}/model, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 2}}}}
collect: {{batch_size: 16}}
steering: [none, vcd, static, {{type: l2s, net: {{epochs: 1}}}}]
evaluate: {{controls: [], directions: [vision], strengths: [0.5, 1, 2], batch_size: 8, max_new_tokens: 1}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    saved_tiny(home / "model")
    (home / "small.yaml").write_text(RECIPE.format(home=home))
    return home


@pytest.fixture(scope="module")
def started(home):
    """Runs the recipe in a folder of a name, and gives its results and the test answers that it computed."""

    def start(root, curve):
        recipe = load(home / "small.yaml", [f"run.root={home / root}", f"evaluate.curve={curve}"])
        chunks = home / root / "small" / "test" / "chunks"
        before = {path.name for path in chunks.glob("*.jsonl")} if chunks.exists() else set()
        folder = pipeline.run(recipe)
        new = [path for path in chunks.glob("*.jsonl") if path.name not in before]
        rows = [json.loads(line) for path in new for line in path.read_text().splitlines()]
        return json.loads((folder / "results.json").read_text()), Counter((r["method"], r["strength"]) for r in rows)

    return start


@pytest.fixture(scope="module")
def full(started):
    return started("full", "full")


@pytest.fixture(scope="module")
def chosen(started):
    return started("chosen", "chosen")


def test_test_is_asked_at_the_chosen_strengths_and_a_quarter_of_it_at_all(full, chosen):
    (every, _), (found, computed) = full, chosen
    rows = lambda results, split: {
        (r["method"], r["strength"]): r for r in results["rows"] if r["split"] == split and r["task"] == "all"
    }
    at = {c["method"]: c["strength"] for c in found["run"]["choices"]}
    assert found["run"]["curve"] == {"share": 0.25, "samples": 4} and "curve" not in every["run"]
    told, same = rows(found, "test"), rows(every, "test")
    assert told.keys() == {("none", None), *at.items()} and {r["n"] for r in told.values()} == {16}
    assert all(row == same[key] for key, row in told.items())
    share = rows(found, CURVE)
    assert share.keys() == same.keys() and {r["n"] for r in share.values()} == {4}
    assert computed == Counter({key: 16 if key in told else 4 for key in same if key[0] != "oracle:l2s"})


def test_a_share_is_beside_no_number_of_the_whole(home, chosen):
    for block in main_tables(chosen[0]):
        assert {line.n for line in block.lines} == {16} and not any(line.oracle for line in block.lines)
        told = r"Of 4 of the 16 test samples, asked at every strength, l2s follows .* and .* \(its oracle\)"
        assert any(re.search(told, note) for note in block.notes)
    assert [group.curve_split for group in groups(chosen[0])] == [CURVE]
    folder = home / "chosen" / "small"
    assert main(["compare", str(folder), "--out", str(home / "out")]) == 0
    lines = Counter(line.split(",")[1] for line in (home / "out" / "compare.csv").read_text().splitlines()[1:])
    assert lines.keys() == {"none", "vcd", "static", "l2s"} and len(set(lines.values())) == 1


def test_another_curve_adds_what_is_missing_and_ends_as_if_it_had_been_the_first(full, chosen, started):
    results, computed = started("chosen", "full")
    swept = {("static", s) for s in (0.5, 1, 2)} | {("l2s", s) for s in (0.5, 1, 2)} | {("vcd", s) for s in (0.5, 1, 2)}
    at = {(c["method"], c["strength"]) for c in results["run"]["choices"]}
    assert computed == Counter({cell: 12 for cell in swept - at})
    assert results["rows"] == full[0]["rows"]
    again, none = started("chosen", "chosen")
    assert again == chosen[0] and not none
    fewer, none = started("full", 0.5)
    assert not none and {r["n"] for r in fewer["rows"] if r["split"] == CURVE and r["task"] == "all"} == {8}


def test_without_a_share_curves_are_of_dev_and_there_is_no_oracle_on_test(home, full, started):
    results, computed = started("full", 0)
    assert not computed and {r["split"] for r in results["rows"]} == {"dev", "test"}
    assert not any(r["method"].startswith("oracle") for r in results["rows"] if r["split"] == "test")
    assert groups(results)[0].curve_split == "dev"
    assert "No oracle" in " ".join(main_tables(results)[0].notes)


def test_a_plan_counts_the_cells_of_a_curve(home, full, chosen):
    counted = {}
    for curve, (_, computed) in {"full": full, "chosen": chosen}.items():
        stages = {s.name: s for s in estimate(load(home / "small.yaml", [f"evaluate.curve={curve}"])).stages}
        steered = {cell: n for cell, n in computed.items() if cell[0] in ("static", "l2s")}
        counted[curve] = stages["test"].cells
        assert stages["test"].cells == sum(steered.values())
    assert counted["chosen"] < counted["full"] / 1.9


@pytest.mark.parametrize("curve", ["1", "-0.1", "choosen", "true"])
def test_what_is_no_curve_is_refused_in_one_line(home, capsys, curve):
    assert main([str(home / "small.yaml"), f"evaluate.curve={curve}"]) == 2
    told = capsys.readouterr().err.strip()
    assert "evaluate.curve" in told and "'full' or 'chosen'" in told and "\n" not in told
