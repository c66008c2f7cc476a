"""A training that was begun: what a change of the recipe does to it, and what is made of a lost result."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from factory import files, progress, tune
from factory.errors import UserError
from factory.recipe import loads
from factory.recipe.schema import LaunchSpec, TrainSpec, TuneDataSpec, TuneSpec
from factory.run.pipeline import run
from factory.run.tuners.going_on import OTHER, SAME, TOLD
from tests.factory.train.case import Interrupted, stops_at, write_data
from tests.kills import BRIEF
from tests.tiny import SMALL, fresh_view, saved_tiny

TENSORS = "tuner.safetensors"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A model, data, an interrupted run with a checkpoint of step 2, and an undisturbed one of 4 steps."""
    root = tmp_path_factory.mktemp("project")
    write_data(root)
    saved_tiny(root / "model")
    run(recipe(root, "whole"))
    with progress.watched(stops_at("tune", 3)), pytest.raises(Interrupted):
        run(recipe(root, "stopped"))
    return root


def recipe(root: Path, runs: str, seed: int = 0, model: dict | None = None, **changes: Any):
    """A tuning of 4 steps, its run under ``runs``; ``data`` among the changes are keys of tune.data."""
    data = {"path": str(root / "data.jsonl"), "max_tokens": 200, **changes.pop("data", {})}
    terms = {"tuner": {"type": "lora", "rank": 2, "dropout": 0.0}, "batch_size": 4, "steps": 4, "save_every": 1}
    spec = {
        "name": "r",
        "seed": seed,
        "model": {"path": str(root / "model"), **(model or {})},
        "run": {"root": str(root / runs)},
        "report": {"plots": False},
        "tune": {**terms, "data": data, **changes},
    }
    return loads(json.dumps(spec), path=root / f"{runs}.yaml")


def copied(project: Path, what: str, to: str) -> Path:
    shutil.rmtree(project / to, ignore_errors=True)
    shutil.copytree(project / what, project / to)
    shutil.copy(project / f"{what}.yaml", project / f"{to}.yaml") if (project / f"{what}.yaml").exists() else None
    record = files.read_json(project / to / "r" / "run.json")
    files.write_json(project / to / "r" / "run.json", record | {"recipe": f"../../{to}.yaml"})
    return project / to / "r"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def events(folder: Path) -> list[str]:
    return [row["event"] for row in files.read_log(folder / "events.jsonl")]


@pytest.mark.parametrize("spec", [TuneSpec, TuneDataSpec, TrainSpec, LaunchSpec])
def test_every_key_is_known_to_change_what_is_learnt_or_not_to(spec):
    sorts = [SAME[spec], set(TOLD[spec]), OTHER[spec]]
    assert set.union(*sorts) == set(spec.model_fields) and sum(map(len, sorts)) == len(spec.model_fields)


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        ({"save_every": 3}, True),
        ({"data": {"max_skipped": 0.5}}, True),
        ({"data": {"workers": 1}}, True),
        ({"threads": 1}, True),
        ({"epochs": 7.0}, True),
        ({"micro_batch": 2}, False),
        ({"gradient_checkpointing": True}, False),
    ],
    ids=str,
)
def test_what_does_not_change_the_result_goes_on_from_the_checkpoint(project, change, exact):
    folder = copied(project, "stopped", "again")
    run(recipe(project, "again", **change))
    assert "stage_discarded" not in events(folder) and events(folder).count("stage_started") == 1
    got, expected = ((f / "tuned" / TENSORS) for f in (folder, project / "whole" / "r"))
    if exact:
        assert got.read_bytes() == expected.read_bytes()
    got, expected = files.read_safetensors(got), files.read_safetensors(expected)
    assert all(torch.allclose(got[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    assert [row["step"] for row in files.read_jsonl(folder / "tune" / "log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("state", ["stopped", "whole"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 0.5}, "tune.learning_rate null -> 0.5"),
        ({"steps": None, "epochs": 2}, "steps 4 -> 12"),
        ({"batch_size": 2}, "tune.batch_size 4 -> 2"),
        ({"tuner": {"type": "lora", "rank": 3, "dropout": 0.0}}, "rank 2 -> 3"),
        ({"seed": 1}, "seed 0 -> 1"),
        ({"data": {"take": 20}}, "tune.data.take null -> 20"),
        ({"bf16": True, "model": {"dtype": "bfloat16"}}, "bfloat16"),
    ],
    ids=str,
)
def test_what_changes_the_result_is_refused_and_nothing_is_lost(project, change, told, state):
    folder = copied(project, state, "other")
    before = contents(folder / "tune"), contents(folder / "tuned")
    with pytest.raises(UserError, match=r"^[^\n]*name=OTHER[^\n]*$") as refused:
        run(recipe(project, "other", **change))
    assert told in str(refused.value), refused.value
    assert (contents(folder / "tune"), contents(folder / "tuned")) == before


def test_without_anything_learnt_a_changed_recipe_starts_afresh(project):
    folder = copied(project, "stopped", "empty")
    shutil.rmtree(folder / "tune" / "checkpoints")
    run(recipe(project, "empty", learning_rate=1e-3))
    assert "stage_discarded" in events(folder)


@pytest.mark.parametrize("how", ["flip", "cut", "remove", "remove all"])
def test_a_lost_result_is_written_again_from_the_last_checkpoint(project, how, capsys):
    folder = copied(project, "whole", "lost")
    before = contents(folder / "tuned")
    for name in before if how != "remove all" else ():
        path = folder / "tuned" / name
        data = path.read_bytes()
        path.unlink() if how == "remove" else path.write_bytes(
            data[:-1] if how == "cut" else data[:-2] + bytes([data[-2] ^ 4]) + data[-1:]
        )
        run(recipe(project, "lost"))
        said = capsys.readouterr().out
        assert "damaged or gone; written again from" in said and contents(folder / "tuned") == before, name
    if how == "remove all":
        shutil.rmtree(folder / "tuned")
        run(recipe(project, "lost"))
        assert contents(folder / "tuned") == before
        shutil.rmtree(folder / "tuned")
        (folder / "tune" / "checkpoints" / "checkpoint-4" / "optimizer.pt").unlink()
        with pytest.raises(UserError, match=r"^.*tuned: what was trained is damaged or gone.*checkpoint-4[^\n]*$"):
            run(recipe(project, "lost"))
        capsys.readouterr()
    else:
        run(recipe(project, "lost"))
        assert "tune: done before" in capsys.readouterr().out


@pytest.mark.parametrize("record", ["{}", '{"steps": 4}', None], ids=["nothing", "another shape", "another number"])
def test_a_damaged_record_of_a_finished_training_is_made_again(project, record):
    path = copied(project, "whole", "told") / "tune" / "summary.json"
    right = path.read_text()
    path.write_text(record or right.replace('"steps": 4', '"steps": 2'))
    assert path.read_text() != right
    run(recipe(project, "told"))
    assert path.read_text() == right


@pytest.mark.parametrize("how", ["touched", "moved"])
def test_data_that_were_touched_or_moved_are_the_same(project, how):
    folder, data = copied(project, "stopped", how), project
    if how == "moved":
        data = Path(shutil.copytree(project, project / "elsewhere", ignore=lambda _, names: set(names) - _data(names)))
    for path in map(data.joinpath, _data(os.listdir(data))):
        os.utime(path, ns=(1, 1))
    run(recipe(project, how, data={"path": str(data / "data.jsonl")}))
    assert "stage_discarded" not in events(folder) and events(folder).count("stage_started") == 1
    assert contents(folder / "tuned")[TENSORS] == contents(project / "whole" / "r" / "tuned")[TENSORS]


def _data(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.endswith((".jsonl", ".png"))}


@pytest.mark.parametrize("name", ["data.jsonl", "1.png"])
def test_data_of_the_same_length_with_another_byte_are_told_in_words(project, name):
    folder, path = copied(project, "stopped", "rows"), project / name
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    at = before.index(b"What") if name == "data.jsonl" else -1
    try:
        path.write_bytes(before[:at] + bytes([before[at] ^ 32]) + before[at:][1:])
        os.utime(path, ns=(time + 1, time + 1))
        with pytest.raises(UserError, match="is kept: the data .a row, or the name or content of a picture, .*OTHER"):
            run(recipe(project, "rows"))
    finally:
        path.write_bytes(before)
    assert (folder / "tune" / "checkpoints" / "checkpoint-2").is_dir()


def test_a_damaged_trained_part_is_not_put_into_a_model(project):
    folder = copied(project, "whole", "flipped") / "tuned"
    tune.load(folder, fresh_view())
    data = bytearray((folder / TENSORS).read_bytes())
    data[-3] ^= 1
    (folder / TENSORS).write_bytes(data)
    with pytest.raises(UserError, match="damaged or exchanged: its checksum"):
        tune.load(folder, fresh_view())


@pytest.mark.parametrize("quantize", [None, "4bit"])
@pytest.mark.parametrize(
    ("dtype", "bf16", "told"),
    [("bfloat16", False, "tune.bf16=true"), ("float16", False, "overflow"), ("float16", True, "overflow")],
)
def test_a_precision_without_gradients_is_refused_before_data_and_model_are_read(project, dtype, bf16, told, quantize):
    model = {"dtype": dtype, "quantize": quantize}
    with pytest.raises(UserError, match=rf"^recipe:1:\d+ model.dtype={dtype}: [^\n]*{told}[^\n]*$"):
        run(recipe(project, "half", model=model, bf16=bf16, data={"path": "nowhere.json"}))


def test_a_training_from_scratch_is_kept_repaired_and_not_overwritten(tmp_path, capsys):
    (tmp_path / "brief.py").write_text(BRIEF)

    def made(*overrides: str):
        spec = {
            "name": "r",
            "plugins": [str(tmp_path / "brief.py")],
            "model": {"build": SMALL},
            "data": "brief",
            "train": {"steps": 2, "text_steps": 1, "batch_size": 2},
            "run": {"root": str(tmp_path / "runs")},
            "report": {"plots": False},
        }
        return loads(json.dumps(spec), overrides=overrides, path=tmp_path / "r.yaml")

    folder = run(made())
    before = contents(folder / "model")
    (folder / "model" / "model.safetensors").write_bytes(before["model.safetensors"][:-1])
    (folder / "model" / "config.json").unlink()
    capsys.readouterr()
    run(made("train.save_every=1"))
    assert "model: damaged or gone; written again from" in capsys.readouterr().out
    assert contents(folder / "model") == before
    with pytest.raises(UserError, match=r"train.steps 2 -> 3[^\n]*name=OTHER"):
        run(made("train.steps=3"))
    assert contents(folder / "model") == before
    with pytest.raises(UserError, match="less than float32"):
        run(made("model.dtype=bfloat16"))
