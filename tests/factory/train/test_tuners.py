"""Tuners compared on a small random model: rates chosen on dev, scores on held-out scenes, resuming, plans, and
mistakes in the recipe.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from eval_suite.benchmarks.plain_scenes import PlainScenes
from factory import files
from factory.cli import main
from factory.recipe import RecipeError, loads
from factory.run.pipeline import run
from factory.run.tuners import contest as tuners
from factory.run.tuners import tuning
from factory.run.tuners.contest import Tuned, best
from tests.factory.ranks import as_ranks
from tests.tiny import saved_tiny

ROOT = Path(__file__).parents[3]
BRIEF = {"type": "plain_scenes", "as": "seen", "per_task": 1}
SCENES = {"lessons": {"type": "scenes", "options": 0.0}, "take": 8, "max_tokens": None}


def written(root: Path, folder: Path, **changes) -> str:
    compare = {
        "tuners": [
            {"tuner": "ia3", "learning_rates": [1e-3, 1e-1]},
            {"tuner": {"type": "mores", "as": "m1"}, "learning_rates": [1e-2]},
        ],
        "tasks": [
            {
                "name": "seeing",
                "data": SCENES,
                "choose": {"type": "plain_scenes", "as": "dev", "split": "dev", "per_task": 1},
                "score": [
                    {"type": "plain_scenes", "as": "seen", "per_task": 2},
                    {"type": "plain_scenes", "as": "read", "shows": "text", "per_task": 1},
                ],
            }
        ],
        "batch_size": 4,
    }
    recipe = {
        "name": "side",
        "model": {"path": str(folder)},
        "compare": compare | changes,
        "diagnostics": ["lmar"],
        "run": {"root": str(root)},
        "evaluate": {"batch_size": 8},
    }
    return yaml.safe_dump(recipe)


def task(data: dict) -> dict:
    """A task with other data and something to choose on."""
    dev = {"type": "plain_scenes", "as": "dev", "split": "dev", "per_task": 1}
    return {"name": "seeing", "data": SCENES | data, "choose": dev, "score": ["plain_scenes"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("side")
    text = written(root / "runs", saved_tiny(root / "model"))
    (root / "side.yaml").write_text(text)
    return root, run(loads(text, path=root / "side.yaml"))


def test_the_rate_that_is_best_on_dev_is_scored_on_test(finished):
    _, folder = finished
    results = files.read_json(folder / "results.json")
    tried = {(t["method"], t["learning_rate"]): t for t in results["tuning"]}
    assert set(tried) == {("ia3", 1e-3), ("ia3", 1e-1), ("m1", 1e-2)}
    ia3 = [tried["ia3", 1e-3], tried["ia3", 1e-1]]
    chosen = [t for t in ia3 if t["chosen"]]
    assert len(chosen) == 1 and chosen[0]["dev"]["value"] == max(t["dev"]["value"] for t in ia3)
    assert all(t["dev"]["benchmark"] == "dev" and t["dev"]["n"] == 8 and t["steps"] == 2 for t in tried.values())
    totals = {(r["label"], r["method"]): r for r in results["rows"] if r["task"] == "all"}
    assert set(totals) == {(label, method) for label in ("seen", "read") for method in ("none", "ia3", "m1")}
    assert (
        all(r["split"] == "test" and r["ci"]["accuracy"] for r in totals.values()) and totals["seen", "ia3"]["n"] == 16
    )
    assert {r["task"] for r in results["rows"] if r["label"] == "seen"} > {"color", "counting"}
    assert files.read_json(folder / "costs.json")["training"]["seeing/m1"]["seconds_per_step"] > 0


def test_every_model_is_the_tuned_one_and_the_page_shows_them(finished):
    _, folder = finished
    fingerprints = [
        files.read_json(folder / f"bench-seen-{name}" / "inputs.json")["inputs"]["model"]
        for name in ("none", "ia3", "m1")
    ]
    assert len(set(fingerprints)) == 3
    page = (folder / "report" / "index.html").read_text()
    for words in (
        "Tuners on seeing",
        "Accuracy against trained parameters",
        "How learning rates were chosen",
        "LMAR by layer",
        "Where the image is looked at",
    ):
        assert words in page
    assert "No modality-preference" not in page and "No method of this run has a strength" not in page
    table = (folder / "report" / "seeing-tuners.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table[1:]] == ["none", "ia3", "m1"]
    assert (folder / "comparison" / "compare.md").is_file()


def test_started_again_it_trains_nothing_and_a_lost_stage_comes_back_the_same(finished, monkeypatch):
    root, folder = finished
    before = (folder / "results.json").read_bytes()
    trained = []
    inside = tuning.train
    monkeypatch.setattr(tuning, "train", lambda *args, **more: trained.append(args[1].name) or inside(*args, **more))
    recipe = loads((root / "side.yaml").read_text(), overrides=["report.plots=false"], path=root / "side.yaml")
    run(recipe)
    assert trained == [] and (folder / "results.json").read_bytes() == before
    (folder / "tune-seeing-m1-0.01" / "summary.json").unlink()
    run(recipe)
    assert trained == ["mores"] and (folder / "results.json").read_bytes() == before


def test_of_equals_the_default_rate_is_taken_then_the_lowest(finished):
    root, _ = finished
    spec = loads((root / "side.yaml").read_text()).compare
    task, ia3 = spec.tasks[0], spec.tuners[0]

    def at(rate, value):
        return Tuned(task, ia3, rate, root, None, {"main": "accuracy", "metrics": {"accuracy": value}})

    assert best([at(1e-3, 0.5), at(3e-3, 0.5), at(1e-2, 0.5)]).rate == 3e-3
    assert best([at(1e-2, 0.5), at(1e-3, 0.5)]).rate == 1e-3
    assert best([at(1e-3, 0.4), at(1e-2, 0.5)]).rate == 1e-2


def test_a_plan_counts_and_trains_nothing(finished, tmp_path, capsys, monkeypatch):
    root, _ = finished
    monkeypatch.setattr(tuners, "tune_on", None)
    assert main(["plan", str(root / "side.yaml"), "name=planned"]) == 0
    said = capsys.readouterr().out
    assert "0.001, 0.1" in said and "time: tuning" in said and not (root / "runs" / "planned").exists()
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert rows["seeing"][1:4] == ["8", "2", "3"], "samples, steps, tunings"
    assert rows["seen"][1:] == ["16", "3", "48"] and rows["dev"][1:] == ["8", "3", "24"], "questions, models, answers"
    assert main(["plan", str(root / "side.yaml"), "model.path=gone"]) == 2
    said, error = capsys.readouterr()
    assert "model.path: model folder gone: not found" in error and "0.001, 0.1" in said


def test_show_prints_a_sample_of_each_task(finished, capsys):
    root, _ = finished
    assert main(["show", str(root / "side.yaml"), "--sample", "1"]) == 0
    assert "sample 1 of seeing (scenes 1)" in capsys.readouterr().out
    assert main(["show", str(root / "side.yaml"), "--sample", "8"]) == 2
    assert "the samples of seeing are numbered 0 to 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({"tuners": [{"tuner": "ia3"}, {"tuner": "ia3"}]}, "compare.tuners.1.tuner", "another one is called 'ia3' too"),
        ({"tuners": [{"tuner": {"type": "ia3", "as": "1 %"}}]}, "compare.tuners.0.tuner", "'1 %' cannot name a file"),
        (
            {"tuners": [{"tuner": "ia3", "learning_rate": 1}]},
            "compare.tuners.0.learning_rate",
            "Did you mean learning_rates?",
        ),
        ({"tuners": [{"tuner": "lroa"}]}, "compare.tuners.0.tuner", "lora"),
        (
            {
                "tasks": [
                    {
                        "name": "a",
                        "data": SCENES,
                        "choose": {"type": "plain_scenes", "as": "x"},
                        "score": ["plain_scenes"],
                    }
                ]
            },
            "compare.tasks.0.choose",
            "chosen on what is scored",
        ),
        (
            {"tasks": [{"name": "a", "data": SCENES, "score": ["plain_scenes"]}]},
            "compare.tuners.0.learning_rates",
            "no rate can be chosen",
        ),
        (
            {
                "tasks": [
                    {
                        "name": n,
                        "data": SCENES,
                        "choose": {"type": "plain_scenes", "as": f"d{n}", "split": "dev"},
                        "score": ["plain_scenes"],
                    }
                    for n in "ab"
                ]
            },
            "compare.tasks.1.score.0",
            "another benchmark is called 'plain_scenes' too",
        ),
        (
            {"neftune": 5, "tasks": [task({"pack": True, "max_tokens": 90})]},
            "compare.neftune",
            "its noise depends on a row's length",
        ),
        (
            {"tasks": [task({"lessons": None, "take": None, "path": "r.yaml", "streaming": True})]},
            "compare",
            "needs steps: how many rows",
        ),
        (
            {"beside": ["vision_tower"], "tasks": [task({"cache_features": True})]},
            "compare",
            "trains the vision tower",
        ),
    ],
)
def test_mistakes_are_told_where_they_stand(tmp_path, change, where, message):
    with pytest.raises(RecipeError) as caught:
        loads(written(tmp_path, tmp_path, **change), "r.yaml")
    [mistake] = [m for m in caught.value.mistakes if where in m]
    assert message in mistake and mistake.startswith("r.yaml:")


def test_a_comparison_stands_alone(tmp_path):
    text = written(tmp_path, tmp_path) + "benchmarks: [plain_scenes]\n"
    with pytest.raises(RecipeError, match=r"r.yaml:\d+:\d+ benchmarks: has no use beside 'compare'"):
        loads(text, "r.yaml")
    with pytest.raises(RecipeError, match="stands beside 'tune'"):
        loads(
            written(tmp_path, tmp_path) + json.dumps({"tune": {"tuner": "ia3", "data": SCENES}})[1:-1] + "\n", "r.yaml"
        )


def test_a_rate_cannot_be_chosen_where_answers_are_hidden(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        PlainScenes, "unscorable", lambda self: "the answers are hidden" if self.params.split == "dev" else None
    )
    (tmp_path / "side.yaml").write_text(written(tmp_path, saved_tiny(tmp_path / "model")))
    assert main([str(tmp_path / "side.yaml")]) == 2
    assert "'seeing' cannot choose a learning rate on 'dev': the answers are hidden" in capsys.readouterr().err


def test_a_diagnostic_with_prompts_of_its_own_is_refused(tmp_path, capsys):
    text = written(tmp_path, saved_tiny(tmp_path / "model")).replace("lmar", "knockout")
    (tmp_path / "side.yaml").write_text(text)
    assert main([str(tmp_path / "side.yaml")]) == 2
    assert "'knockout' asks prompts of its own" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_that_cut_the_weights_find_what_one_finds(tmp_path):
    """ZeRO-3 must not outlive a training: the models that are loaded afterwards, for scoring, are whole."""
    compare = {
        "tuners": [
            {"tuner": {"type": "mores", "dropout": 0.0}, "learning_rates": [1e-2]},
            {"tuner": "ia3", "learning_rates": [1e-2]},
        ],
        "tasks": [{"name": "seeing", "data": SCENES, "score": [{"type": "plain_scenes", "per_task": 1}]}],
    }
    (tmp_path / "side.yaml").write_text(written(tmp_path, saved_tiny(tmp_path / "model"), **compare))
    one = files.read_json(run(loads((tmp_path / "side.yaml").read_text(), overrides=["name=one"])) / "results.json")
    ranked = loads((tmp_path / "side.yaml").read_text(), overrides=["launch.processes=2", "launch.zero=3"])
    done = as_ranks(2, lambda world: run(ranked, None, world) and 0, tmp_path)
    assert done.codes == [0, 0], done.err[-3000:]
    two = files.read_json(tmp_path / "side" / "results.json")
    assert [t["loss"] for t in two["tuning"]] == pytest.approx([t["loss"] for t in one["tuning"]], rel=1e-5)
    assert [r["metrics"] for r in two["rows"]] == [r["metrics"] for r in one["rows"]]


@pytest.mark.slow
def test_the_terms_of_a_training_are_those_of_each_of_a_comparison_s(tmp_path, capsys):
    """Packing, new tokens and kept checkpoints; and a tuner that cannot be packed is named before anything runs."""
    saved = saved_tiny(tmp_path / "model")
    one = {"name": "seeing", "data": SCENES | {"pack": True, "max_tokens": 300}, "score": [BRIEF]}
    how = {"new_tokens": ["<zig>"], "steps": 3, "save_every": 1, "keep_checkpoints": 2, "tasks": [one]}
    text = written(tmp_path / "runs", saved, tuners=[{"tuner": "ia3"}, {"tuner": "mores"}], **how)
    (tmp_path / "side.yaml").write_text(text)
    for command in ([], ["plan"]):
        assert main([*command, str(tmp_path / "side.yaml")]) in (1, 2)
        assert "data.pack: tuner 'mores' looks at whole rows" in "".join(capsys.readouterr())
    text = written(tmp_path / "runs", saved, tuners=[{"tuner": "ia3"}], **how)
    folder = run(loads(text, path=tmp_path / "side.yaml"))
    [stage] = folder.glob("tune-*")
    assert len(list(stage.glob("checkpoints/checkpoint-*"))) == 2
    [kept] = files.read_json(next(folder.glob("tuned/*/tuner_config.json")))["new_tokens"]
    assert kept == "<zig>"
