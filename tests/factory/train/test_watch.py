"""A training that diverges stops in a line with its last good checkpoint; one that learns nothing says so."""

from __future__ import annotations

from random import Random

import pytest
import torch

from eval_suite.scenes.curriculum import Mix, lesson
from factory import files
from factory.errors import UserError
from factory.recipe.schema import TrainSpec
from factory.train import checkpoint
from factory.train.resume import WEIGHTS
from factory.train.scratch.lessons import LessonStream
from factory.train.scratch.trainer import train_lessons
from tests.factory.train.case import Breaking, tuned, write_data
from tests.tiny import fresh_view

LORA = {"type": "lora", "rank": 2, "dropout": 0.0}


class Exploding(torch.autograd.Function):
    """A loss as it is, with no finite gradient."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


BREAKS = {"loss is nan": lambda loss: loss * float("nan"), "gradient's norm is (inf|nan)": Exploding.apply}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("what", BREAKS)
def test_the_first_loss_or_gradient_that_is_no_number_stops_the_training(data, tmp_path, what):
    with pytest.raises(UserError, match=rf"^the {what} at step 3: stopped, .*checkpoint-2.*learning rate[^\n]*$"):
        tuned(data, tmp_path, LORA, {}, save_every=1, objective=lambda view: Breaking(view, 3, BREAKS[what]))
    (kept,) = tmp_path.glob("checkpoint-*")
    checkpoint.check(kept)
    assert kept.name == "checkpoint-2"
    assert all(value.isfinite().all() for value in files.read_safetensors(kept / WEIGHTS).values())


def test_between_two_checkpoints_it_is_found_before_the_next_is_saved(tmp_path):
    """A training from scratch reads its loss from the device every so many steps alone."""
    spec = TrainSpec(steps=8, batch_size=2, save_every=2, learning_rate=1e30)
    lessons = LessonStream(lambda index, batch, total: lesson(Random(index), 0.5, Mix()), 2, 8)
    with pytest.raises(UserError, match="at step 2: stopped, and no checkpoint had been written yet"):
        train_lessons(fresh_view(), lessons, spec, 8, 0, tmp_path / "c")
    assert not list((tmp_path / "c").glob("checkpoint-*"))


def test_parts_without_a_gradient_are_named(data, tmp_path, capsys):
    rows = [row for row in files.read_jsonl(data) if "image" not in row]
    files.write_jsonl(tmp_path / "texts.jsonl", rows)
    told = {}
    for name, source, tuner in (("pictures", data, LORA), ("texts", tmp_path / "texts.jsonl", LORA)):
        tuned(source, tmp_path / name, tuner, {}, steps=2)
        told[name] = capsys.readouterr().err
    assert "no gradient" not in told["pictures"]
    assert "warning: connector has had no gradient but zero in 2 steps" in told["texts"] and "lora" not in told["texts"]
    tuned(tmp_path / "texts.jsonl", tmp_path / "alone", {"type": "connector"}, {}, steps=12)
    assert capsys.readouterr().err.count("warning: connector has had no gradient") == 2, "early, and at the end"
