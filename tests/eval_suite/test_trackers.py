"""What TensorBoard and W&B are told of a run, read back from their own files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eval_suite.report.tracked import curves, scores
from eval_suite.speed.samples_page import made_up
from factory import cli, files, progress
from factory.recipe import loads
from factory.registry import lookup
from factory.run.pipeline import run as run_recipe
from tests.eval_suite.test_samples_page import plain
from tests.factory.train.case import Interrupted, stops_at, write_data
from tests.tiny import saved_tiny

STRENGTHS = (0.5, 1.0, 3.0)
FOLLOWED = {("none", None): 0.25, ("amps", 0.5): 0.375, ("amps", 1.0): 0.625, ("amps", 3.0): 0.5}


def rows(split: str) -> list[dict]:
    """A row for each of ``FOLLOWED``, one of a task, and dev's of other numbers."""
    about = {"benchmark": "made up", "direction": "vision", "split": split, "n": 8, "variant": ""}
    return [
        {
            **about,
            "method": method,
            "strength": strength,
            "task": task,
            "chosen": strength in (None, 1.0),
            "metrics": {"follow": value + (split == "dev") / 8, "error": 0.0},
        }
        for (method, strength), value in FOLLOWED.items()
        for task in ("all", "color")
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "made"
    made = made_up(6, folder, plain)
    files.write_text(folder / "resolved.yaml", "name: made\n")
    files.write_text(folder / "report" / "table.md", "| Method | Total |\n")
    plain(1).save(files.make_folder(folder / "report" / "figures") / "strength.png")
    return replace(made, results={**made.results, "rows": rows("dev") + rows("test")})


def report(name: str, **params):
    cls = lookup("report", name)
    return cls(cls.Params(**params))


def test_the_scores_and_curves_are_the_totals_of_the_rows(finished):
    told = {(s.arm, s.strength): s.metrics["follow"] for s in scores(finished.results)}
    assert told == {("none-vision", None): 0.25, ("amps-vision", 1.0): 0.625}
    drawn = {(c.split, c.arm): [(at, m["follow"]) for at, m in c.points] for c in curves(finished.results)}
    expected = [(strength, FOLLOWED["amps", strength]) for strength in STRENGTHS]
    assert drawn == {
        ("test", "amps-vision"): expected,
        ("dev", "amps-vision"): [(at, value + 0.125) for at, value in expected],
    }


def read_events(folder: Path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_has_curves_scores_figures_and_samples(finished, capsys):
    pytest.importorskip("tensorboard")
    board = report("tensorboard", samples=2)
    for _ in range(2):  # written again it is the same, not doubled
        folder = board.write(finished)
    assert f"tensorboard --logdir {folder}" in capsys.readouterr().out
    events = read_events(folder / "amps-vision")
    drawn = [(event.step / 100, event.value) for event in events.Scalars("made up test/follow")]
    assert drawn == [(strength, FOLLOWED["amps", strength]) for strength in STRENGTHS]
    assert [event.value for event in events.Scalars("made up/follow")] == [0.625]
    assert "_hparams_/session_start_info" in events.summary_metadata
    told = read_events(folder / "report")
    assert told.Tags()["images"] == ["figures/strength"]
    [table] = told.Tensors("samples/made up/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    [said] = [
        p["answers"][0]
        for p in finished.predictions
        if (p["sample"], p["method"], p["direction"], p["strength"]) == ("sample-0", "amps", "vision", 1.0)
    ]
    lines = text.splitlines()
    header, first = (line.strip("| ").split(" | ") for line in (lines[0], lines[2]))
    assert len(lines) == 4 and first[header.index("amps-vision")].startswith(f"{said} (")


def is_picture(path: Path) -> bool:
    return path.read_bytes()[:3] in (b"\xff\xd8\xff", b"\x89PN")


def test_wandb_has_scores_curves_figures_and_samples(finished, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")  # the recipe's word counts
    tracker = report("wandb", mode="offline", samples=2)
    assert tracker.unready() is None
    try:
        folder = tracker.write(finished)
        first = files.read_json(finished.folder / "wandb.json")["id"]
        tracker.write(finished)
    finally:
        wandb.teardown()
    assert files.read_json(finished.folder / "wandb.json")["id"] == first, "written again it is the same run"
    kept = min(folder.glob(f"offline-run-*-{first}/files/media"))

    def table(name: str) -> list[dict]:
        [path] = (kept / "table").glob(f"{name}_*.table.json")
        found = json.loads(path.read_text())
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]

    assert {(r["method"], r["strength"]): r["follow"] for r in table("scores")} == {
        ("none", ""): 0.25,
        ("amps", "1.0"): 0.625,
    }
    drawn = {r["strength"]: r["value"] for r in table("curves/all") if (r["split"], r["metric"]) == ("test", "follow")}
    assert drawn == {strength: FOLLOWED["amps", strength] for strength in STRENGTHS}
    shown = table("samples/made*")
    assert [r["sample"] for r in shown] == ["sample-0", "sample-3"] and "Context" in shown[0]
    assert {r["picture"] for r in shown} == {"Image"}
    staged = [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file() and is_picture(path)]
    assert staged, "the pictures of a table are sent from W&B's own folder of data"
    assert len(list((kept / "images" / "figures").glob("strength_*.png"))) == 1


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
@pytest.mark.parametrize("command", [["plan"], []])
def test_a_tracker_that_is_not_installed_is_told_before_anything_else(name, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nmodel: {{path: {tmp_path / 'absent'}}}\ndata: scenes\nsteering: [static]\n"
        f"report: {{also: [{name}]}}\nrun: {{root: {tmp_path / 'runs'}}}\n"
    )
    assert cli.main([*command, str(recipe)]) == 2
    shown, said = capsys.readouterr()
    refused = "refused: " in shown and shown.index("refused: ") < shown.index("model: unknown") < shown.index("data: ")
    assert refused == bool(command), "a plan's tables may take a while"
    assert "r.yaml:5:17 report.also.0.type: " in said and f"needs {name}, the extra '{name}': " in said
    assert not (tmp_path / "runs").exists()


def test_a_training_is_followed_step_by_step_also_after_a_stop(tmp_path):
    pytest.importorskip("tensorboard")
    saved_tiny(tmp_path / "model")
    data = {"path": str(write_data(tmp_path)), "max_tokens": 200}
    tune = {"tuner": {"type": "lora", "rank": 2}, "data": data, "batch_size": 4, "steps": 3, "save_every": 2}
    text = {
        "name": "r",
        "model": {"path": str(tmp_path / "model")},
        "run": {"root": str(tmp_path / "runs")},
        "tune": tune,
        "report": {"also": ["tensorboard"]},
    }
    recipe = loads(json.dumps(text), path=tmp_path / "r.yaml")
    with progress.watched(stops_at("tune", 3)), pytest.raises(Interrupted):
        run_recipe(recipe)
    folder = run_recipe(recipe) / "tune"
    log = files.read_jsonl(folder / "log.jsonl")
    losses = [(event.step, event.value) for event in read_events(folder / "tensorboard").Scalars("train/loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in log] and len(losses) == 3
