"""LoRA's variants against their papers' equations, written out for one map, and saved, loaded, merged and taken out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from factory import tune
from factory.errors import UserError
from factory.registry import lookup
from tests.tiny import conflict_prompts, fresh_view

RANK, ALPHA = 3, 5


def lora(**options):
    cls = lookup("tuner", "lora")
    return cls(cls.Params(rank=RANK, alpha=ALPHA, dropout=0.0, **options))


def rslora(W: Tensor, A: Tensor, B: Tensor, m: Tensor | None) -> Tensor:
    return W + ALPHA / math.sqrt(RANK) * B @ A


def dora(W: Tensor, A: Tensor, B: Tensor, m: Tensor | None) -> Tensor:
    """Equation 5: m (W0 + B A) / ||W0 + B A||, norms over each output's row; alpha / r scales B A as in LoRA."""
    V = W + ALPHA / RANK * B @ A
    assert m is not None
    return m[:, None] * V / V.norm(dim=1, keepdim=True)


def plain(W: Tensor, A: Tensor, B: Tensor, m: Tensor | None) -> Tensor:
    return W + ALPHA / RANK * B @ A


def pissa_residual(W: Tensor) -> Tensor:
    """What PiSSA leaves in the base: W without its first RANK singular directions (equation 4)."""
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    return W - U[:, :RANK] * S[:RANK] @ V[:RANK]


def scattered(tuner) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in tuner.trainable.values():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))


CASES = {
    "plain": ({}, plain),
    "rslora": ({"variant": "rslora"}, rslora),
    "dora": ({"variant": "dora"}, dora),
    "pissa": ({"start": "pissa"}, plain),
}


@pytest.mark.parametrize("case", CASES)
def test_a_map_is_what_its_paper_says(case):
    options, rule = CASES[case]
    view = fresh_view()
    inner = view.layers[0].self_attn
    W = inner.q_proj.weight.detach().clone()
    tuner = lora(targets=["query"], **options)
    tuner.apply(view)
    x = torch.randn(4, W.shape[1], generator=torch.Generator().manual_seed(1))
    assert torch.allclose(inner.q_proj(x), x @ W.T, atol=1e-5), "at the start the model is what it was"
    scattered(tuner)
    by = {name: p.detach() for name, p in tuner.trainable.items() if "layers.0." in name}
    one = lambda what: next((p for name, p in by.items() if what in name), None)
    base = pissa_residual(W) if case == "pissa" else W
    expected = rule(base, one("lora_A"), one("lora_B"), one("magnitude"))
    with torch.no_grad():
        assert torch.allclose(inner.q_proj(x), x @ expected.T, atol=1e-5)
        assert not torch.allclose(inner.q_proj(x), x @ W.T, atol=1e-2)


@pytest.mark.parametrize("case", [name for name in CASES if name != "plain"])
def test_what_was_learnt_is_saved_loaded_merged_and_taken_out(case, tmp_path):
    view, other, merged = fresh_view(), fresh_view(), fresh_view()
    before = {name: t.clone() for name, t in view.model.state_dict().items()}
    batch = view.encode(conflict_prompts(2))
    with torch.no_grad():
        plain_logits = view.model(**batch).logits
        tuner = lora(**CASES[case][0])
        tuner.apply(view, ("connector",))
        scattered(tuner)
        logits = view.model(**batch).logits
        tune.save(tmp_path / "tuned", tuner, view, {})
        tune.load(tmp_path / "tuned", other)
        assert torch.allclose(other.model(**batch).logits, logits, atol=1e-5)
        tune.load(tmp_path / "tuned", merged).merge(merged)
        assert torch.allclose(merged.model(**batch).logits, logits, atol=1e-3)
        assert merged.model.state_dict().keys() == before.keys()
        assert not torch.allclose(logits, plain_logits, atol=1e-2)
        scattered_apart = lora(**CASES[case][0])
    again = fresh_view()
    scattered_apart.apply(again, ("connector",), restorable=True)
    scattered(scattered_apart)
    scattered_apart.remove(again)
    assert all(torch.equal(t, before[name]) for name, t in again.model.state_dict().items()), "to the bit"


def test_the_vision_tower_s_maps_are_tuned_and_the_decoder_s_left_alone():
    view = fresh_view()
    tuner = lora(where="vision_tower", targets=["query", "mlp_in"])
    names = tuner.apply(view)
    tower = {id(m) for m in view.vision_tower.modules()}
    assert names and all(id(view.model.get_submodule(n.rpartition(".lora_")[0])) in tower for n in names)
    both = fresh_view()
    assert len(lora(where="both", targets=["query"]).apply(both)) > len(lora(targets=["query"]).apply(fresh_view()))
    batch = view.encode(conflict_prompts(2))
    view.model(**batch).logits.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in names.values())


def test_the_blocks_that_are_tuned_can_be_chosen():
    view = fresh_view()
    names = lora(layers="deep", targets=["value"]).apply(view)
    blocks = {int(name.split(".layers.")[1].split(".")[0]) for name in names}
    assert blocks == set(range(view.depth - view.depth // 2, view.depth))


def test_a_pooling_head_which_no_language_model_reads_is_left_alone():
    view = fresh_view()
    before = set(lora(where="vision_tower", targets=["mlp_in"]).apply(fresh_view()))
    view.vision_tower.add_module("head", nn.ModuleDict({"fc1": nn.Linear(4, 4)}))
    assert set(lora(where="vision_tower", targets=["mlp_in"]).apply(view)) == before


def test_a_tower_without_such_a_map_is_told():
    view = fresh_view()
    for module in view.vision_tower.modules():
        for name, child in list(module.named_children()):
            if name == "fc1" and isinstance(child, nn.Linear):
                module.fc1 = nn.Sequential(child)
    with pytest.raises(UserError, match="the vision tower has no projection called fc1 .*leave 'mlp_in' out"):
        lora(where="vision_tower", targets=["mlp_in"]).apply(view)
