"""The terms of a tuning, each by its effect: rates by part, noise on embeddings, 8-bit moments, kept checkpoints."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from factory.corpus.collate import Collator
from factory.corpus.order import Order
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.recipe import loads
from factory.registry import lookup
from factory.run.plan.plan import plan
from factory.run.tuners.checked import check
from factory.train.loop import Answers
from tests.factory.train.case import Interrupted, tuned, write_data
from tests.tiny import fresh_view

LORA = {"type": "lora", "rank": 2, "dropout": 0.0}
PLAIN = {"schedule": "constant", "warmup": 0.0}
RATES = {"connector": 2e-2, "vision_tower": 1e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def loop(data, steps: int, rates: dict[str, float], beside: tuple[str, ...], decay: float = 0.0) -> dict:
    """The training written out: whole batches, the parts' parameters in groups of their own, clipped, AdamW."""
    view, order = fresh_view(), Order(24, 4, 0)
    cls = lookup("tuner", "lora")
    torch.manual_seed(1)
    trained = cls(cls.Params(rank=2, dropout=0.0)).apply(view, beside)
    view.model.train()
    source = ConversationFile(data, data.parent, data.parent / "index")
    rate_of = lambda name: next((r for part, r in rates.items() if part.split("_")[0] in name), 3e-3)
    groups = [{"params": [p], "lr": rate_of(name)} for name, p in _places(trained, view).items()]
    for group in groups:
        group["weight_decay"] = decay if group["params"][0].ndim > 1 else 0.0
    optimizer = torch.optim.AdamW(groups)
    for step in range(steps):
        batch = Collator(view, source, 200, None)([order[4 * step + i] for i in range(4)])
        logits = view.model(**{k: t for k, t in batch.items() if k not in ("labels", "roles")}).logits[:, :-1]
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
    return trained


def _places(trained: dict, view) -> dict:
    """Parameters by a name that begins with their part's."""
    parts = {"connector": view.connector, "vision": view.vision_tower}
    owner = {id(p): part for part, module in parts.items() for p in module.parameters()}
    return {f"{owner.get(id(p), 'own')} {name}": p for name, p in trained.items()}


def apart(values: dict, others: dict) -> float:
    return max(float((value - others[name].detach()).abs().max()) for name, value in values.items())


def test_each_part_learns_at_its_own_rate(data, tmp_path):
    beside = ("connector", "vision_tower")
    how = PLAIN | {"steps": 2, "beside": beside, "weight_decay": 0.1}
    _, values = tuned(data, tmp_path, LORA, {}, learning_rates=RATES, **how)
    assert apart(values, loop(data, 2, RATES, beside, 0.1)) < 3e-4
    assert apart(values, loop(data, 2, {}, beside, 0.1)) > 5e-3, "one rate for all is another training"


@pytest.mark.parametrize(
    "term", [{"learning_rates": {"connector": 2e-2}}, {"neftune": 5.0}, {"optimizer": "adamw_8bit"}]
)
def test_an_interrupted_training_goes_on_the_same(data, tmp_path, term):
    how, wide = {"steps": 3, "save_every": 1, **term}, LORA | {"rank": 128}
    _, whole = tuned(data, tmp_path / "whole", wide, {}, **how)
    with pytest.raises(Interrupted):
        tuned(data, tmp_path / "cut", wide, {}, stop=2, **how)
    _, resumed = tuned(data, tmp_path / "cut", wide, {}, **how)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_a_rate_of_a_part_that_is_frozen_is_refused_with_its_place():
    text = "{name: r, model: {zoo: tiny}, tune: {tuner: mores, data: {path: x.json}, learning_rates: {%s: 0.1}}}"
    with pytest.raises(UserError, match="tune.learning_rates.vision_tower: vision_tower is not trained; add it"):
        loads(text % "vision_tower")
    assert loads(text % "connector").tune.learning_rates == {"connector": 0.1}


class Watched(Answers):
    """The usual objective, which keeps what entered the first block and the table's rows for the same tokens."""

    def __init__(self, view, found: list) -> None:
        super().__init__(view)
        image = view.model.config.image_token_id
        table, ids = view.model.get_input_embeddings(), []
        table.register_forward_pre_hook(lambda module, args: ids.append(args[0].clone()))

        def entered(module: nn.Module, args: tuple, kwargs: dict) -> None:
            h, at = args[0] if args else kwargs["hidden_states"], ids[-1]
            found.append((h.shape, (h - table.weight[at])[at != image].detach().flatten()))

        view.layers[0].register_forward_pre_hook(entered, with_kwargs=True)


def test_neftune_adds_uniform_noise_of_its_paper_s_size_while_training(data, tmp_path):
    for alpha in (5.0, None):
        found: list = []
        tuned(data, tmp_path / str(alpha), LORA, {}, objective=lambda view, f=found: Watched(view, f), neftune=alpha)
        assert len(found) == 4
        for shape, noise in found:
            bound = (alpha or 0.0) / math.sqrt(shape[1] * shape[2])  # alpha / sqrt(L d)
            assert noise.abs().max().item() == pytest.approx(bound, rel=0.02)
            assert noise.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_8_bit_moments_are_kept_and_lead_nearly_where_adamw_does(data, tmp_path):
    how, wide = PLAIN | {"steps": 2, "save_every": 2}, LORA | {"rank": 128}  # smaller tensors stay in 32 bits
    losses, values = tuned(data, tmp_path / "8", wide, {}, optimizer="adamw_8bit", **how)
    plain_losses, plain = tuned(data, tmp_path / "32", wide, {}, **how)
    state = torch.load(tmp_path / "8" / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    moments = [kept["__bnb_optimizer_quant_state__"] for kept in state.values()]
    assert any(each["state1"].dtype == torch.uint8 == each["state2"].dtype for each in moments)
    assert losses == pytest.approx(plain_losses, rel=2e-2)
    far = torch.cat([(values[name] - t).flatten() for name, t in plain.items()]).norm()
    moved = torch.cat([t.flatten() for name, t in plain.items() if "lora_B" in name]).norm()  # from 0
    assert 0 < far < 0.3 * moved


def test_as_many_checkpoints_are_kept_as_are_asked_for(data, tmp_path):
    for keep in (1, 3):
        tuned(data, tmp_path / str(keep), LORA, {}, save_every=1, steps=4, keep_checkpoints=keep)
        kept = sorted(path.name for path in (tmp_path / str(keep)).glob("checkpoint-*"))
        assert kept == [f"checkpoint-{step}" for step in range(5 - keep, 5)]


def test_float16_is_for_gpus_and_says_so_in_one_line():
    text = "{name: r, model: {zoo: tiny, device: cpu}, tune: {tuner: mores, fp16: true, data: {path: x.json}%s}}"
    recipe = loads(text % "")
    with pytest.raises(UserError, match="^tune.fp16: float16 with a scaled loss needs a GPU") as told:
        check(recipe.tune, recipe.model)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="tune.fp16: bf16 is set too"):
        loads(text % ", bf16: true")


def test_features_of_a_vision_tower_that_lora_trains_are_not_kept(data, tmp_path):
    spec = {
        "name": "r",
        "model": {"zoo": "tiny"},
        "run": {"root": str(tmp_path)},
        "tune": {
            "tuner": {"type": "lora", "rank": 2, "where": "vision_tower"},
            "data": {"path": str(data), "cache_features": True},
        },
    }
    with pytest.raises(UserError, match="tune.data.cache_features: tuner 'lora' trains the vision tower"):
        plan(loads(json.dumps(spec)))
