"""The sweep's short cut against plain steered generation."""

from __future__ import annotations

import pytest
import torch

from factory.model.prefix import at_last, decode_texts, prefill
from factory.steer.sweep import run_cell, run_trunk
from tests.contract.cases import Case, answers, logits, steering
from tests.tiny import fresh_view, mixed_prompts, tiny_view

CASES = [Case("static"), Case("l2s", (("predict_from", "per_token"),)), Case("amps", (("apply_to", "generated_only"),))]
STRENGTHS = (0.0, 2.0, -4.0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_cell_is_the_plain_steered_generation(layer, side):
    view, prompts, found = tiny_view(), mixed_prompts(), set()
    trunk = run_trunk(view, view.encode(prompts, side), layer)
    for case in CASES:
        for strength in STRENGTHS:
            cell = run_cell(view, trunk, steering(case, layer, strength), 3).tolist()
            assert cell == answers(view, prompts, steering(case, layer, strength), side, 3), (str(case), strength)
            found.add(str(cell))
    assert run_cell(view, trunk, None, 3).tolist() == answers(view, prompts, side=side, n=3)
    assert len(found) > 2, "the strengths must make a difference"


def test_cells_do_not_disturb_each_other_nor_the_trunk():
    view = tiny_view()
    trunk = run_trunk(view, view.encode(mixed_prompts()), 1)
    before = trunk.states.clone(), [layer.keys.clone() for layer in trunk.prefix.cache.layers]
    first = run_cell(view, trunk, steering(CASES[0], 1, 2.0), 4)
    run_cell(view, trunk, steering(CASES[0], 1, -3.0), 4)
    assert torch.equal(run_cell(view, trunk, steering(CASES[0], 1, 2.0), 4), first)
    assert torch.equal(trunk.states, before[0])
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(trunk.prefix.cache.layers, before[1], strict=True))


def test_strengths_per_row_in_a_cell():
    view, prompts = tiny_view(), mixed_prompts()
    trunk = run_trunk(view, view.encode(prompts), 1)
    mixed = run_cell(view, trunk, steering(CASES[1], 1, torch.tensor([0.0, 2.0, -4.0, 2.0])), 3).tolist()
    for i, strength in enumerate((0.0, 2.0, -4.0, 2.0)):
        assert mixed[i] == run_cell(view, trunk, steering(CASES[1], 1, strength), 3).tolist()[i]


def test_the_trunk_knows_the_last_prompt_states():
    view = tiny_view()
    for side in ("left", "right"):
        batch = view.encode(mixed_prompts(), side)
        trunk, seen = run_trunk(view, batch, 1), []
        handle = view.layers[1].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        with torch.no_grad():
            hidden, _ = prefill(view, batch)
        handle.remove()
        assert torch.equal(trunk.last, at_last(seen[0], batch.attention_mask)) and torch.equal(trunk.final, hidden)


def test_the_lower_blocks_run_once_and_nothing_is_left():
    view, calls = fresh_view(), []
    before = [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in view.layers]
    handles = [layer.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, layer in enumerate(view.layers)]
    trunk = run_trunk(view, view.encode(mixed_prompts()), 1)
    for strength in STRENGTHS:
        run_cell(view, trunk, steering(CASES[0], 1, strength), 1)
    for handle in handles:
        handle.remove()
    assert [calls.count(i) for i in range(3)] == [1, 1, 1 + len(STRENGTHS)]
    assert [(len(layer._forward_hooks), len(layer._forward_pre_hooks)) for layer in view.layers] == before


def test_texts_end_at_the_end_token():
    view = tiny_view()
    ids = view.tokenizer("red</s> never<pad>", add_special_tokens=False).input_ids
    end = ids.index(view.tokenizer.eos_token_id)
    tokens = torch.tensor([ids[: end + 1] + [view.pad_id] * 3])
    assert decode_texts(view, tokens) == ["red"]
    assert logits(view, mixed_prompts()[:1]).shape == (1, len(view.tokenizer))
