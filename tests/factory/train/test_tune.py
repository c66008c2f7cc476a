"""Tuning in one process: what is learnt does not depend on how a step is cut, nor on how often the training was
killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from factory import files, progress, tune
from factory.corpus.collate import Collator
from factory.corpus.labels import IGNORE
from factory.corpus.order import Order
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.recipe import loads
from factory.recipe.schema import TuneSpec
from factory.registry import lookup
from factory.run.pipeline import run
from factory.run.plan.plan import plan
from factory.train import checkpoint
from factory.train.loop import Answers, Shape, refuse_other_shape
from factory.train.losses import smoothed
from factory.train.resume import WEIGHTS
from tests.factory.train.case import STEPS, Interrupted, stops_at, tuned, write_data
from tests.tiny import fresh_view, saved_tiny, tiny_view

ROOT = Path(__file__).parents[3]
LORA = {"type": "lora", "rank": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return *tuned(data, folder, LORA, {}), folder


def batch_of(data: Path, numbers: list[int]) -> dict[str, torch.Tensor]:
    source = ConversationFile(data, data.parent, data.parent / "index")
    batch = Collator(tiny_view(), source, None, None)(numbers)
    batch.pop("roles")
    return batch


def test_the_loss_is_the_summed_cross_entropy_of_the_labelled_tokens(data):
    view, batch = tiny_view(), batch_of(data, [0, 1, 5])
    logits, labels = (
        view.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1],
        batch["labels"][:, 1:],
    )
    expected = -sum(
        F.log_softmax(row, -1)[token]
        for row, token in zip(logits[labels != IGNORE], labels[labels != IGNORE], strict=True)
    )
    assert torch.allclose(Answers(view)(**batch), expected, rtol=1e-5)


def test_a_batch_without_a_label_adds_nothing(data):
    batch = batch_of(data, [0, 1])
    view = fresh_view()
    view.connector.requires_grad_(True)
    loss = Answers(view)(**batch | {"labels": torch.full_like(batch["labels"], IGNORE)})
    loss.backward()
    assert loss.item() == 0 and not any(p.grad.any() for p in view.connector.parameters())


def test_a_step_is_adam_on_the_mean_over_all_labelled_tokens_of_the_batch(data, reference, tmp_path):
    """The same by hand: one loss over the whole batch, clipped, one AdamW step."""
    view, order = fresh_view(), Order(24, 4, 0)
    cls = lookup("tuner", "lora")
    tuner = cls(cls.Params(rank=2, dropout=0.0))
    torch.manual_seed(1)
    trained = tuner.apply(view, ("connector",))
    view.model.train()
    batch = batch_of(data, [order[i] for i in range(4)])
    labels = batch.pop("labels")
    loss = F.cross_entropy(
        view.model(**batch).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    torch.optim.AdamW(trained.values(), lr=3e-3, weight_decay=0.0).step()
    losses, values = tuned(data, tmp_path, LORA, {}, steps=1)
    assert loss.item() == pytest.approx(losses[0], rel=1e-5) == pytest.approx(reference[0][0], rel=1e-5)
    for name, value in values.items():
        assert torch.allclose(value, trained[name], atol=1e-4), name


@pytest.mark.parametrize("how", [{"micro_batch": 1}, {"micro_batch": 2}, {"gradient_checkpointing": True}], ids=str)
def test_neither_micro_batches_nor_recomputation_change_what_is_learnt(data, reference, tmp_path, how):
    losses, values = tuned(data, tmp_path, LORA, {}, **how)
    assert losses == pytest.approx(reference[0], rel=1e-4)
    assert all(torch.allclose(values[name], reference[1][name], atol=1e-4) for name in values)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bits(data, tmp_path):
    dropping = {"type": "lora", "rank": 2, "dropout": 0.3}
    whole = tuned(data, tmp_path / "whole", dropping, {}, save_every=1, micro_batch=2)
    case = {
        "data": str(data),
        "folder": str(tmp_path / "killed"),
        "tuner": dropping,
        "launch": {},
        "save_every": 1,
        "micro_batch": 2,
        "stop": 3,
        "kill": True,
    }
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.factory.train.case", json.dumps([case])],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    (checkpoint,) = (tmp_path / "killed").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-2", "step 3 was not saved yet"
    losses, values = tuned(data, tmp_path / "killed", dropping, {}, save_every=1, micro_batch=2)
    assert losses == whole[0] and all(torch.equal(values[name], whole[1][name]) for name in whole[1])


def test_checkpoints_hold_the_trained_part_alone_with_a_manifest(reference):
    (last,) = reference[2].glob("checkpoint-*")
    manifest = checkpoint.read_manifest(last)
    saved = files.read_safetensors(last / WEIGHTS)
    assert all(torch.equal(saved[name], reference[1][name]) for name in saved) and saved.keys() == reference[1].keys()
    assert (manifest["step"], manifest["ranks"], manifest["zero"]) == (STEPS, 1, 0)
    assert all(("lora" in name) or ("multi_modal_projector" in name) for name in saved)


def test_a_checkpoint_of_other_ranks_is_refused(reference, tmp_path):
    refuse_other_shape(reference[2], {"ranks": 1, "zero": 0})
    refuse_other_shape(tmp_path / "none", {"ranks": 2, "zero": 0})
    with pytest.raises(UserError, match=r"written by a training with \{'ranks': 1\}; this one has \{'ranks': 2\}"):
        refuse_other_shape(reference[2], {"ranks": 2, "zero": 0})


def test_a_step_is_cut_evenly_or_refused():
    spec = TuneSpec.model_validate({"tuner": LORA, "data": {"path": "x"}, "batch_size": 24, "micro_batch": 4})
    assert Shape.of(spec, 2) == Shape(2, 4, 3) and Shape.of(spec, 1) == Shape(1, 4, 6)
    assert Shape.of(spec, 12) == Shape(12, 2, 1), "a micro-batch is never more than a rank's share"
    for ranks, what in ((5, "5 ranks"), (4, "does not divide the 6 samples")):
        with pytest.raises(UserError, match=what):
            Shape.of(spec, ranks)


def test_the_moving_average_starts_where_the_losses_do():
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smoothed([1.0, 2.0])[1] == pytest.approx((0.95 * 0.05 * 1 + 0.05 * 2) / (1 - 0.95**2))


@pytest.fixture
def recipe(data, tmp_path):
    saved_tiny(tmp_path / "model")

    def make(_name="r", **tune_keys):
        keys = {
            "tuner": LORA,
            "data": {"path": str(data), "max_tokens": 200},
            "batch_size": 4,
            "steps": 3,
            **tune_keys,
        }
        keys = {key: value for key, value in keys.items() if value is not None}
        text = json.dumps(
            {
                "name": _name,
                "model": {"path": str(tmp_path / "model")},
                "run": {"root": str(tmp_path / "runs")},
                "report": {"plots": False},
                "tune": keys,
            }
        )
        return loads(text, path=tmp_path / "r.yaml")

    return make


def test_a_run_ends_with_the_tuned_part_its_loss_and_its_picture(recipe, tmp_path, capsys):
    asked = recipe(learning_rate=3e-3, steps=8)
    asked = asked.model_copy(update={"report": asked.report.model_copy(update={"plots": True})})
    folder = run(asked)
    said = capsys.readouterr().out
    view = fresh_view()
    expected = sum(p.numel() for p in view.connector.parameters())
    assert f"{expected:,}" in said and "connector" in said and "lora" in said, "the table of what is trained"
    summary = files.read_json(folder / "tune" / "summary.json")
    log = files.read_jsonl(folder / "tune" / "log.jsonl")
    assert (
        [row["step"] for row in log] == list(range(1, 9))
        and summary["loss"] == log[-1]["loss"]
        and summary["parameters"]["beside"] == expected
    )
    assert (folder / "tune" / "loss.png").read_bytes().startswith(b"\x89PNG")

    batch = batch_of(Path(asked.tune.data.path), [1, 2, 4, 5])
    before = Answers(view)(**batch)
    tune.load(folder / "tuned", view)
    assert Answers(view)(**batch) < before, "the loaded part has learnt"
    run(asked)
    assert "tune: done before" in capsys.readouterr().out


def test_a_run_that_was_stopped_ends_with_the_same_bits(recipe, monkeypatch):
    whole = run(recipe(save_every=1))
    assert not (whole / "tune" / "loss.png").exists(), "drawn where figures are"
    saved = files.read_safetensors(whole / "tuned" / "tuner.safetensors")
    shutil.rmtree(whole)
    with progress.watched(stops_at("tune", 2)), pytest.raises(Interrupted):
        run(recipe(save_every=1))
    assert not (whole / "tuned").exists()
    again = files.read_safetensors(run(recipe(save_every=1)) / "tuned" / "tuner.safetensors")
    assert saved.keys() == again.keys() and all(torch.equal(saved[name], again[name]) for name in saved)
    assert [row["step"] for row in files.read_jsonl(whole / "tune" / "log.jsonl")] == [1, 2, 3]


def test_the_plan_of_a_tuning(recipe, tmp_path, capsys):
    plan(recipe())
    said = capsys.readouterr().out
    assert (
        "24 samples, 3 steps of 4 (1 rank(s) x 1 x 4), 0.50 epochs" in said
        and "lora" in said
        and "learning rate: 0.0002" in said
    )
    with pytest.raises(UserError, match=r"tune\.data\.path .* no such file; looked for .*gone\.json"):
        plan(recipe(data={"path": str(tmp_path / "gone.json")}))


def test_worker_processes_read_the_same_batches(data, reference, tmp_path):
    losses, values = tuned(data, tmp_path, LORA, {}, data_workers=2)
    assert losses == reference[0] and all(torch.equal(values[name], reference[1][name]) for name in values)


def test_pretraining_trains_the_connector_alone(recipe):
    folder = run(recipe(stage="pretrain", tuner=None), limit=2)
    assert folder.name == "r-limit2" and files.read_json(folder / "tune" / "summary.json")["steps"] == 2
    saved = files.read_safetensors(folder / "tuned" / "tuner.safetensors")
    assert saved and all("multi_modal_projector" in name for name in saved)


def test_a_training_of_nothing_is_refused(recipe):
    with pytest.raises(UserError, match="leaves nothing to train"):
        run(recipe(stage="pretrain", tuner=None, beside=[]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tuner": None}, "needs a tuner"),
        ({"stage": "pretrain"}, "leave tuner out"),
        ({"data": {}}, "needs one of path, mix, hub, photos and lessons"),
        ({"tuner": {"type": "lora", "rnk": 3}}, "Did you mean rank"),
    ],
)
def test_mistakes_in_the_recipe_are_told_with_their_place(recipe, keys, message):
    with pytest.raises(UserError, match=message):
        recipe(**keys)


def test_unusable_samples_are_left_out_and_named_or_end_the_run(recipe, data, tmp_path):
    rows = files.read_jsonl(data)
    rows[1]["conversations"][0]["value"] = "<image>\n" + "word " * 300
    for row in rows:
        if "image" in row:
            row["image"] = str(data.parent / row["image"])
    files.write_jsonl(tmp_path / "long.jsonl", rows)
    spec = {"path": str(tmp_path / "long.jsonl"), "max_tokens": 200}
    with pytest.raises(UserError, match="1 of 24 samples cannot be used.*s1: takes .* tokens before its first answer"):
        run(recipe(data=spec, steps=6))
    folder = run(recipe(data=spec | {"max_skipped": 0.1}, steps=6))
    summary = files.read_json(folder / "tune" / "summary.json")
    assert summary["skipped"] == [] and list(summary["data"]["troubles"]) == ["too long"]
    assert "sample s1" in summary["data"]["named"][0]


def test_a_picture_that_fails_later_counts_beside_what_the_audit_left_out(recipe, data, tmp_path, capsys):
    rows = files.read_jsonl(data)
    rows[0]["conversations"][0]["value"] = "what is </s>?"
    for row in rows:
        if "image" in row:
            row["image"] = str(data.parent / row["image"])
    cut = tmp_path / "cut.png"
    Image.effect_noise((60, 60), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:-400])  # its header is sound
    rows[1]["image"] = str(cut)
    files.write_jsonl(tmp_path / "d.jsonl", rows)
    spec = {"path": str(tmp_path / "d.jsonl")}
    folder = run(recipe(data=spec | {"max_skipped": 0.09}, steps=6))
    (lost,) = files.read_json(folder / "tune" / "summary.json")["skipped"]
    assert lost["sample"] == "s1" and "cut.png: damaged or cut short" in lost["reason"]
    said = capsys.readouterr().out
    for words in ("24", "special token in a text", "without a picture"):
        assert words in said
    with pytest.raises(UserError, match="more than tune.data.max_skipped.*cut.png"):
        run(recipe(_name="less", data=spec | {"max_skipped": 0.05}, steps=6))
    with pytest.raises(UserError, match="2 of 24 samples cannot be used"):
        run(recipe(_name="whole", data=spec | {"max_skipped": 0.05, "decode": True}, steps=6))


def test_a_workers_refusal_is_one_line(recipe, data, tmp_path):
    rows = files.read_jsonl(data)
    cut = tmp_path / "cut.png"
    Image.effect_noise((60, 60), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:-400])
    rows = [{**row, "image": str(cut)} if "image" in row else row for row in rows]
    files.write_jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(UserError, match="^sample s[0-9]+: its image cannot be read") as told:
        run(recipe(data={"path": str(tmp_path / "d.jsonl"), "workers": 1}, steps=2))
    assert "\n" not in str(told.value)


def test_lessons_of_a_benchmark_can_be_tuned_on(recipe):
    folder = run(recipe(data={"lessons": "scenes", "take": 8, "max_tokens": None}, steps=None, epochs=0.5))
    assert files.read_json(folder / "tune" / "summary.json")["steps"] == 1


def test_show_prints_a_training_sample(recipe, tmp_path, capsys):
    from factory import cli

    (tmp_path / "r.yaml").write_text(recipe().text)
    assert cli.main(["show", str(tmp_path / "r.yaml"), "--sample", "1"]) == 0
    assert "sample 1 (s1)" in capsys.readouterr().out
    assert cli.main(["show", str(tmp_path / "r.yaml"), "--sample", "99"]) == 2
    assert "numbered 0 to 23" in capsys.readouterr().err


def test_the_roles_of_a_batch_s_copy_come_with_it(data):
    """As ranks and data loaders' workers get it: the ids have forgotten them."""
    view = fresh_view()
    mores = lookup("tuner", "mores")
    mores(mores.Params(modality="text", dropout=0.0)).apply(view)
    source = ConversationFile(data, data.parent, data.parent / "index")
    batch = Collator(view, source, None, None)([1, 2])
    expected = Answers(view)(**batch)
    copied = {name: torch.from_numpy(t.numpy().copy()) for name, t in batch.items()}
    del batch
    assert torch.equal(Answers(view)(**copied), expected)
    with pytest.raises(UserError, match="needs to know the prompt's words"):
        view.model(**{name: t for name, t in copied.items() if name not in ("roles", "labels")})
