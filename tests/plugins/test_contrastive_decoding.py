"""VCD and CausalMM against their equations, run slowly: one prompt, one copy and one token at a time, without a
cache.
"""

from __future__ import annotations

import math

import pytest
import torch

from factory.data.prompt import Role
from factory.steer.logits import contrasted, contrastive
from plugins.steering.causalmm import CausalMM, CausalParams, counterfactual
from plugins.steering.vcd import Vcd, VcdParams, noised
from tests.contract.cases import close
from tests.tiny import conflict_prompts, tiny_view


def whole(view, batch, answer: list[int], pixels: torch.Tensor | None) -> torch.Tensor:
    """Logits after a prompt and the answer so far, recomputed from nothing."""
    ids = torch.cat([batch.input_ids, torch.tensor([answer], dtype=torch.long)], 1)
    extra = {} if pixels is None else {"pixel_values": pixels}
    with torch.no_grad():
        return view.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra).logits[0, -1]


def slow_answer(view, own, copy, strength: float, plausible: float, n: int) -> list[int]:
    answer = []
    for _ in range(n):
        z, other = own(answer), copy(answer)
        best = None
        for y in range(len(z)):
            if z[y] >= z.max() + math.log(plausible):
                value = (1 + strength) * z[y] - strength * other[y]
                best = (value, y) if best is None or value > best[0] else best
        answer.append(best[1])
        if best[1] in view.eos_ids.tolist():
            break
    return answer


@pytest.mark.parametrize("direction", ["vision", "text"])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_vcd_is_its_formula_run_slowly(direction, strength):
    view, method = tiny_view(), Vcd(VcdParams(noise_step=700, plausible=0.001))
    prompts = conflict_prompts(3, seed=20)
    ours = contrasted(view, method, prompts, direction, [strength], 4)[0]
    assert any(ours[i] != contrasted(view, method, prompts, direction, [0.0], 4)[0][i] for i in range(3))
    for prompt, text in zip(prompts, ours, strict=True):
        batch = view.encode([prompt])
        v = batch.images["pixel_values"]
        other = view.encode([prompt.without(Role.CONTEXT)]) if direction == "text" else batch
        v_other = v if direction == "text" else noised(v, 700, 0)
        answer = slow_answer(
            view,
            lambda a, b=batch, p=v: whole(view, b, a, p),
            lambda a, b=other, p=v_other: whole(view, b, a, p),
            strength,
            0.001,
            4,
        )
        assert view.tokenizer.decode(answer, skip_special_tokens=True).strip() == text


def test_the_diffusion_noise_by_hand():
    abar = 1.0
    for i in range(501):
        x = -6 + 12 * i / 999
        abar *= 1 - (1 / (1 + math.exp(-x)) * (0.005 - 0.00001) + 0.00001)
    v = torch.linspace(-2, 2, 60).view(1, 3, 4, 5)
    eps = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    assert close(noised(v, 500, 3), math.sqrt(abar) * v + math.sqrt(1 - abar) * eps)


def test_images_cut_into_patches_get_noise_of_their_own_size():
    patches, grids = torch.randn(2 * (6 + 4), 8), torch.tensor([[1, 2, 3], [1, 2, 2]] * 2)
    out = Vcd(VcdParams()).images({"pixel_values": patches, "image_grid_thw": grids}, "vision", 2)["pixel_values"]
    assert (
        torch.equal(out[:10], patches[:10])
        and close(out[10:16], noised(patches[10:16], 500, 0))
        and close(out[16:], noised(patches[16:], 500, 0))
    )


def test_both_levels_are_weighed_together():
    own, others = torch.tensor([[3.0, 2.9, -9.0]]), torch.tensor([[[1.0, 0.0, 0.0]], [[2.0, 1.0, 0.0]]])
    assert contrastive(own, others, 0.5, 0.1).tolist() == [
        [pytest.approx(2 * 3.0 - 0.5 - 1.0), pytest.approx(2 * 2.9 - 0.5), -math.inf]
    ]


@pytest.mark.parametrize("level", ["vision", "language"])
@pytest.mark.parametrize("kind", ["reversed", "uniform", "random", "shuffle"])
def test_counterfactual_maps_entry_by_entry(kind, level):
    """As edit_attention (vision) and reverse_attention (language) of the released code do it, with rows that sum to
    1."""
    seen = torch.ones(4, 4).tril().bool()[None, None]
    A = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))).masked_fill(~seen, -1e9).softmax(-1)
    drawn = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(5))
    rng = torch.Generator().manual_seed(5)
    orders = [torch.randperm(16, generator=rng).tolist() for _ in range(3)]
    found = counterfactual(A, seen, kind, 5, level)
    for b in range(2):
        for h in range(3):
            whole = [a for row in A[b, h].tolist() for a in row]
            for i in range(4):
                row = A[b, h, i].tolist()
                edited = {
                    "reversed": [max(whole if level == "vision" else row) - a for a in row],
                    "uniform": [1.0] * 4,
                    "random": drawn[h, i].tolist(),
                    "shuffle": [whole[orders[h][4 * i + j]] for j in range(4)],
                }[kind]
                edited = [e if j <= i else 0.0 for j, e in enumerate(edited)]
                expected = [e / sum(edited) for e in edited] if sum(edited) > 1e-9 else row
                assert found[b, h, i].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_released_default_of_the_tower_is_the_shuffled_map():
    assert CausalParams().vision_map == "shuffle"


@pytest.mark.parametrize(
    "level, kind", [("vision", "reversed"), ("vision", "shuffle"), ("language", "reversed"), ("language", "uniform")]
)
def test_causalmm_is_its_formula_run_slowly(level, kind, monkeypatch):
    """The copy's attention is edited in transformers' own eager attention, in a model without cache, hooks or batch."""
    from transformers.models.clip import modeling_clip
    from transformers.models.llama import modeling_llama

    view = tiny_view(kv_heads=2)
    method = CausalMM(CausalParams(levels=level, plausible=0.001, **{f"{level}_map": kind}))
    prompts, strength = conflict_prompts(2), 3.0
    ours = contrasted(view, method, prompts, "vision", [strength], 3)[0]
    module = modeling_clip if level == "vision" else modeling_llama
    config = view.vision_tower.config if level == "vision" else view.decoder.config

    def edited(self_module, q, k, v, mask, scaling, **options):
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        A = (q @ k.mT * scaling + (0 if mask is None else mask)).softmax(-1)
        seen = (
            torch.ones(A.shape[-2:], dtype=torch.bool)[None, None]
            if level == "vision"
            else torch.ones(A.shape[-2:]).tril().bool()[None, None]
        )
        return (counterfactual(A, seen, kind, 0, level) @ v).transpose(1, 2), None

    def copy(batch, answer):
        with monkeypatch.context() as patch:
            patch.setattr(module, "eager_attention_forward", edited)
            patch.setattr(config, "_attn_implementation", "eager")
            return whole(view, batch, answer, batch.images["pixel_values"])

    for prompt, text in zip(prompts, ours, strict=True):
        batch = view.encode([prompt])
        answer = slow_answer(
            view,
            lambda a, b=batch: whole(view, b, a, b.images["pixel_values"]),
            lambda a, b=batch: copy(b, a),
            strength,
            0.001,
            3,
        )
        assert view.tokenizer.decode(answer, skip_special_tokens=True).strip() == text
