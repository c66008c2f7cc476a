"""Looks at what is held out in stages, data and folders that are unlike the usual ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from factory import files
from factory.errors import UserError
from factory.recipe import loads
from factory.run.pipeline import run
from tests.compose import encoder, llm
from tests.factory.train.case import COLOURS, write_data
from tests.tiny import saved_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    write_data(root)
    saved_tiny(root / "model")
    return root


def recipe(root: Path, runs: str, **changes):
    tune = {
        "tuner": {"type": "lora", "rank": 2},
        "data": {"path": str(root / "data.jsonl"), "max_tokens": 200},
        "batch_size": 4,
        "steps": 2,
    }
    model = {"path": str(root / "model")}
    spec = {
        "name": "r",
        "model": model,
        "run": {"root": str(root / runs)},
        "report": {"plots": False},
        "tune": tune | changes,
    }
    return loads(json.dumps(spec), path=root / f"{runs}.yaml")


def test_a_connector_that_is_aligned_is_looked_at(tmp_path):
    """Its labels are one a sample: the loss at a learning rate of next to nothing is that of the first step."""
    tiny_tokenizer(400).save_pretrained(tmp_path / "llm")
    for i in range(16):
        path = tmp_path / "photos" / COLOURS[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), COLOURS[i % 4]).save(path)
    resampler = {"type": "resampler", "queries": 3, "depth": 1, "heads": 4, "width": 16, "positions": True}
    language = {**llm(), "tokenizer": str(tmp_path / "llm")}
    model = {"compose": {"vision_encoder": encoder("efficientnet_lite0"), "connector": resampler, "llm": language}}
    tune = {
        "stage": "align",
        "data": {"photos": str(tmp_path / "photos"), "cache_features": True, "max_tokens": None},
        "batch_size": 8,
        "learning_rate": 1e-12,
        "steps": 2,
        "held_out": {"share": 0.5, "every": 1},
    }
    spec = {
        "name": "r",
        "model": model,
        "run": {"root": str(tmp_path / "runs")},
        "report": {"plots": False},
        "tune": tune,
    }
    folder = run(loads(json.dumps(spec), path=tmp_path / "r.yaml"))
    rows = files.read_jsonl(folder / "tune" / "log.jsonl")
    looks = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert len(looks) == 2 and looks[0] == pytest.approx(looks[1], rel=1e-4)
    # Photos of a colour are alike, and each half of the samples has its own count of each.
    assert 0.5 < looks[0] / next(row["loss"] for row in rows if "loss" in row) < 2


@pytest.mark.parametrize(
    ("data", "held"),
    [
        ({"path": "a.json"}, {"path": "a.json", "take": 5, "seed": 1}),
        ({"mix": [{"path": "a.json"}, {"path": "b.json"}]}, {"path": "b.json"}),
        ({"lessons": "scenes", "take": 40}, {"lessons": "scenes", "take": 8}),
    ],
)
def test_what_is_learnt_cannot_be_what_is_held_out(project, data, held):
    with pytest.raises(UserError, match="tune.held_out.data: is what is learnt"):
        recipe(project, "leak", data=data, held_out={"data": held})


def test_other_lessons_held_out_are_another_training(project):
    lessons = lambda seed: {"data": {"lessons": {"type": "scenes", "seed": seed}, "take": 4}, "every": 2}
    run(recipe(project, "lessons", held_out=lessons(3)))
    with pytest.raises(UserError, match="a training with other values is there"):
        run(recipe(project, "lessons", held_out=lessons(4)))
