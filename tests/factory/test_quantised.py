"""Models whose decoder bitsandbytes has packed into 8 or 4 bits: what is packed, and that steering, MCR and training
work on them.

The reference is the same model with plain weights, each being what the packed module makes of its bytes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from factory.model.facts import facts_of
from factory.model.load import load
from factory.model.view import ModelView
from factory.model.weights import weight_of
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from tests.contract.cases import Case, close, logits, steering
from tests.contract.test_families import PICTURED, READING, prompts_of
from tests.contract.test_tuners import learn
from tests.plugins.test_mcr import run as mcr
from tests.tiny import conflict_prompts
from tests.tiny_families import family_view

LOOSE = {
    "8bit": 0.2,
    "4bit": 1e-4,
}  # LLM.int8 rounds activations too, and such small random models are no help against it
BITS = pytest.mark.parametrize("bits", LOOSE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    @cache
    def folder(name: str) -> Path:
        view, path = family_view(name), tmp_path_factory.mktemp(name)
        view.model.save_pretrained(path)
        view.processor.save_pretrained(path)
        return path

    return folder


def packed(view: ModelView) -> dict[str, nn.Module]:
    return {
        name: m
        for name, m in view.model.named_modules()
        if isinstance(m, nn.Linear) and not m.weight.is_floating_point()
    }


def unpacked(view: ModelView, folder: Path) -> ModelView:
    plain = load(ModelSpec(path=str(folder)))
    for name, module in packed(view).items():
        with weight_of(module) as W, torch.no_grad():
            plain.model.get_submodule(name).weight.copy_(W)
    return plain


@BITS
@pytest.mark.parametrize("name", [*PICTURED, "llama", "opt"])
def test_a_packed_model_is_the_plain_one_of_its_weights(name, bits, saved):
    """Its logits, steered and not, and its MCR."""
    view = load(ModelSpec(path=str(saved(name)), quantize=bits))
    plain, prompts = unpacked(view, saved(name)), prompts_of(view)
    for steerings in ((), steering(READING, 1, 0.5)):
        assert close(logits(view, prompts, steerings), logits(plain, prompts, steerings), LOOSE[bits])
    if view.family.columnless:  # MCR reads the columns of picture and text
        return
    found, expected = mcr(view, prompts[:3]), mcr(plain, prompts[:3])
    for key, row in expected.items():
        assert found[key]["R_V"] == pytest.approx(row["R_V"], abs=LOOSE[bits])


@BITS
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "idefics3"])
def test_all_of_the_decoder_and_nothing_else_is_packed(name, bits, saved):
    view = load(ModelSpec(path=str(saved(name)), quantize=bits))
    names = {id(m): n for n, m in view.model.named_modules()}
    blocks = {names[id(m)] for block in view.layers for m in block.modules() if isinstance(m, nn.Linear)}
    assert set(packed(view)) == blocks
    counted = facts_of(family_view(name).model, view.family, torch.float32).linear
    assert counted == sum(m.in_features * m.out_features for m in packed(view).values())


@BITS
@pytest.mark.parametrize(
    "case", [Case("l2s"), Case("dose"), Case("heads", (("role", "all"), ("generated", True)))], ids=str
)
def test_strength_zero_is_no_steering_bit_for_bit(case, bits, saved):
    view = load(ModelSpec(path=str(saved("llava_next")), quantize=bits))
    prompts = conflict_prompts(3)
    assert torch.equal(logits(view, prompts, steering(case, 1, 0.0)), logits(view, prompts))
    assert not torch.equal(logits(view, prompts, steering(case, 1, 3.0)), logits(view, prompts))


@BITS
@pytest.mark.parametrize("name", ["lora", "adapter", "mores"])
def test_a_tuner_learns_on_packed_weights_and_leaves_them(name, bits, saved):
    """QLoRA, and its like: the parameters of the tuner and of the connector move, the bytes stay."""
    view = load(ModelSpec(path=str(saved("llava_next")), quantize=bits))
    before = {path: m.weight.clone() for path, m in packed(view).items()}
    tuner = lookup("tuner", name)
    made = tuner(tuner.Params())
    trained = made.apply(view, beside=("connector",))
    start = {path: p.detach().clone() for path, p in trained.items()}
    plain = logits(view, conflict_prompts(2))
    learn(view, trained)
    assert any(".connector" in path or "projector" in path for path in trained)
    assert sum(not torch.equal(p, start[path]) for path, p in trained.items()) > 0.4 * len(trained)
    assert not close(logits(view, conflict_prompts(2)), plain, 1e-3)
    after = {path.removesuffix(".base_layer"): m.weight for path, m in packed(view).items()}
    assert after.keys() == before.keys() and all(torch.equal(after[path], weight) for path, weight in before.items())
