"""D-LEAF's quantities and its correction against loops in plain Python, and against a model run slowly."""

from __future__ import annotations

import math

import pytest
import torch

from factory.data.prompt import Role
from factory.errors import UserError
from factory.instruments.focus import iaf, liae, weights
from factory.registry import lookup
from factory.steer.logits import contrasted
from plugins.steering.dleaf import Dleaf, DleafParams, corrected
from tests.contract.cases import close
from tests.tiny import conflict_prompts, mixed_prompts, tiny_view


def random_attention(rows: int, heads: int, t: int, length: int) -> torch.Tensor:
    return torch.randn(rows, heads, t, length, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)


def test_liae_and_iaf_by_hand():
    A = random_attention(2, 3, 1, 6)[:, :, 0]
    on = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    mass = [[sum(float(A[r, h, j]) for j in range(6) if on[r, j]) for h in range(3)] for r in range(2)]
    assert iaf(A, on).tolist() == [pytest.approx(m) for m in mass]
    mean = [sum(float(A[0, h, j]) for h in range(3)) / 3 for j in (0, 1, 3)]
    p = [m / sum(mean) for m in mean]
    assert liae(A, on)[0].item() == pytest.approx(-sum(x * math.log(x) for x in p)) and math.isnan(liae(A, on)[1])


def test_attention_that_is_no_plain_softmax_is_refused():
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(UserError, match="soft cap"):
        weights(q, q, torch.ones(1, 1, 3, 3, dtype=torch.bool), {"scaling": 1.0, "softcap": 50.0})


def test_the_correction_head_by_head():
    A, focus = random_attention(2, 4, 3, 5), torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.1, 0.4, 0.3, 0.2]])
    out = corrected(A, focus, torch.tensor([True, False]), 0.25)
    assert torch.equal(out[1], A[1])
    for h, bad in enumerate([True, False, False, True]):
        assert close(out[0, h], 0.25 * A[0, 1] + 0.75 * A[0, h]) if bad else torch.equal(out[0, h], A[0, h])


def slow_logits(view, batch, role: Role, gamma: float, margin: float, monkeypatch, answer=()) -> torch.Tensor:
    """Logits after a prompt and its answer by transformers' eager attention, corrected as D-LEAF says; of a single row,
    with no cache.

    Without a cache each earlier pass is a part of this one: attention rows of the prompt are judged at its last token,
    those of an answer token at that token.
    """
    from transformers.models.llama import modeling_llama

    ids = torch.cat([batch.input_ids, torch.tensor([list(answer)], dtype=torch.long)], 1)
    on = torch.cat([batch.roles == role, torch.zeros(1, len(answer), dtype=torch.bool)], 1)[0]
    n, best = batch.input_ids.shape[1], {}
    passes = [range(n), *([i] for i in range(n, ids.shape[1]))]

    def attend(module, q, k, v, mask, scaling, **options):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        seen = torch.ones(q.shape[2], q.shape[2]).tril().bool()
        A = (q @ k.mT * scaling).masked_fill(~seen, -1e30).softmax(-1)[0]
        for i, queries in enumerate(passes):
            last = A[:, queries[-1]]
            abar = last.mean(0)[on] / last.mean(0)[on].sum()
            entropy = float(-(abar * abar.log()).sum())
            if entropy > best.get(i, entropy) + margin:
                mass = last[:, on].sum(-1)
                for h in range(len(A)):
                    if mass[h] < mass.mean():
                        A[h, list(queries)] = (
                            gamma * A[int(mass.argmax()), list(queries)] + (1 - gamma) * A[h, list(queries)]
                        )
            best[i] = min(best.get(i, entropy), entropy)
        return (A[None] @ v).transpose(1, 2), None

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(modeling_llama, "eager_attention_forward", attend)
        patch.setattr(view.decoder.config, "_attn_implementation", "eager")
        return view.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **batch.images).logits[
            0, -1
        ]


@pytest.mark.parametrize("direction, role", [("vision", Role.IMAGE), ("text", Role.CONTEXT)])
@pytest.mark.parametrize("strength, layers", [(0.5, "astray"), (3.0, "astray"), (0.5, "all")])
def test_dleaf_is_its_rule_run_slowly(direction, role, strength, layers, monkeypatch):
    view, method = tiny_view(layers=4), Dleaf(DleafParams(margin=0.05, layers=layers))
    margin = 0.05 if layers == "astray" else -math.inf
    prompts, seen, moved = conflict_prompts(3), [], []
    method.combine = lambda own, *_: seen.append(own) or own
    contrasted(view, method, prompts, direction, [strength], 2)
    tokens = seen[0].argmax(-1).tolist()
    for i, prompt in enumerate(prompts):
        batch = view.encode([prompt])
        first = slow_logits(view, batch, role, min(strength, 1.0), margin, monkeypatch)
        second = slow_logits(view, batch, role, min(strength, 1.0), margin, monkeypatch, [tokens[i]])
        assert close(seen[0][i], first, 2e-5) and close(seen[1][i], second, 2e-5)
        moved.append(not close(first, slow_logits(view, batch, role, 0.0, 0.05, monkeypatch), 1e-3))
    assert any(moved)


@pytest.mark.parametrize("name", ["liae", "iaf"])
def test_the_diagnostics_are_those_of_eager_attention(name):
    view, prompts = tiny_view(), mixed_prompts()
    cls = lookup("diagnostic", name)
    rows = cls(cls.Params()).measure(view, view.encode(prompts), ["a", "b", "c", "d"])
    for key, prompt in zip("abc", prompts, strict=False):
        batch = view.encode([prompt])
        before, view.decoder.config._attn_implementation = view.decoder.config._attn_implementation, "eager"
        with torch.no_grad():
            maps = view.core(**batch, output_attentions=True, use_cache=False).attentions
        view.decoder.config._attn_implementation = before
        on = batch.roles == Role.IMAGE
        for layer, A in enumerate(maps):
            mine = [r["value"] for r in rows if r["sample"] == key and r["layer"] == layer]
            last = A[:, :, -1]
            expected = [liae(last, on).item()] if name == "liae" else iaf(last, on)[0].tolist()
            assert mine == pytest.approx(expected, abs=1e-5)
