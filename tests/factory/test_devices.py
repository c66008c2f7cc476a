"""A model on one GPU and on two, on pretended devices: what it gives is what it gives on the CPU."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from factory.errors import UserError
from factory.model.checks import self_check
from factory.recipe import load
from factory.registry import lookup
from factory.run.plan.estimate import estimate
from factory.run.plan.rehearse import rehearse
from factory.train.loop import Answers, train
from factory.train.scratch.lessons import LessonCollator
from factory.train.scratch.trainer import OneDevice
from tests.anchor import scenes_bench
from tests.contract.cases import Case, answered_example, close, logits, steering
from tests.elsewhere import DEVICES, spread
from tests.tiny import conflict_prompts, fresh_view, mixed_prompts, saved_tiny, tiny_view

RECIPE = """\
name: small
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: both_orders, per_task: {{train: 1, dev: 1, test: 1}}}}
collect: {{batch_size: 32}}
steering:
  - none
  - {{type: dose, doses: [0.5, 1], gate_epochs: 3, of: {{type: l2s, net: {{epochs: 3}}}}}}
  - {{type: dsas, of: {{type: static}}}}
evaluate: {{controls: [], strengths: [0.5, 1], batch_size: 32, max_new_tokens: 2}}
report: {{plots: false}}
"""
NEAR = 1e-4  # the kernels of attention differ


def test_pretended_devices_are_as_strict_as_true_ones():
    here = torch.ones(2)
    with spread(fresh_view()) as view:
        there, other = (torch.ones(2, device=device) for device in DEVICES)
        assert {str(p.device) for p in view.model.parameters()} == {str(device) for device in DEVICES}
        assert (
            (there + 1).device == DEVICES[0]
            and there.to(DEVICES[1]).device == other.device
            and there[here.long()].device == DEVICES[0]
        )
        for wrong in (
            lambda: there + other,
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: other[there.long()],
        ):
            with pytest.raises(RuntimeError, match="tensors on"):
                wrong()


def test_a_spread_model_checks_itself():
    plain = logits(tiny_view(), mixed_prompts())
    with spread(fresh_view()) as view:
        self_check(view)
        assert close(logits(view, mixed_prompts()).cpu(), plain, NEAR)


@pytest.mark.parametrize("method", ["l2s", "heads", "dose", "dsas"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_spread_model_is_steered_alike(method, layer):
    strength = torch.tensor([0.5, 0.0, -1.0, 2.0])
    plain, again = (steering(Case(method), layer, strength) for _ in range(2))
    expected = logits(tiny_view(), mixed_prompts(), plain)
    with spread(fresh_view()) as view:
        assert close(logits(view, mixed_prompts(), again).cpu(), expected, NEAR)


def rows_of(view, name: str) -> list[dict]:
    cls = lookup("diagnostic", name)
    diagnostic, (bench, samples) = cls(cls.Params()), scenes_bench(view)
    return diagnostic.on_samples(bench, samples[:2])


@pytest.mark.parametrize(
    "name", ["answer_knockout", "attribution", "heads", "iaf", "knockout", "liae", "lmar", "logit_lens"]
)
def test_a_spread_model_is_measured_alike(name):
    expected = rows_of(fresh_view(), name)
    with spread(fresh_view()) as view:
        found = rows_of(view, name)
    assert expected and len(found) == len(expected)
    for mine, wanted in zip(found, expected, strict=True):
        assert (
            mine == {**wanted, "value": pytest.approx(wanted["value"], abs=1e-3, nan_ok=True)}
            if "value" in wanted
            else mine == wanted
        )


def test_every_part_of_a_run_is_rehearsed_on_a_spread_model(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(folder=saved_tiny(tmp_path / "model")))
    recipe = load(path, [])
    found = estimate(recipe)
    with spread(fresh_view()) as view:
        done = rehearse(recipe, view, found.methods)
    assert {("trials", ("trials", "dose")), ("test", ("sweep", "dose")), ("test", ("further", "dsas"))} <= set(
        done.seconds
    )


def loss_of(view) -> torch.Tensor:
    batch = LessonCollator(view)([answered_example(p) for p in conflict_prompts(2)])
    with torch.no_grad():
        return Answers(view)(**{name: value for name, value in batch.items() if name != "text_labels"})


def test_a_spread_model_has_the_loss_of_a_whole_one():
    expected = loss_of(fresh_view())
    with spread(fresh_view()) as view:
        assert close(loss_of(view).cpu(), expected, NEAR)


def test_a_process_trains_on_one_device(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    theirs, ours = (
        made(output_dir=str(tmp_path), per_device_train_batch_size=2) for made in (TrainingArguments, OneDevice)
    )
    assert theirs.train_batch_size == 8 and ours.train_batch_size == 2 and ours.n_gpu == 1


def test_a_model_that_lies_in_host_memory_in_part_is_not_trained(tmp_path):
    view = fresh_view()
    view.layers[1].to("meta")
    with pytest.raises(UserError, match="device_map.*host memory"):
        train(view, None, None, None, None, None, 1, 0, tmp_path)
