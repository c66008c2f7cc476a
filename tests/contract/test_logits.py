"""The contract of decoding-time methods, on every registered one."""

from __future__ import annotations

import pytest
import torch

from factory.model.prefix import decode_texts
from factory.registry import lookup
from factory.steer import TrainedMethod
from factory.steer.logits import contrasted
from tests.contract import cases
from tests.tiny import conflict_prompts, mixed_prompts, tiny_view

DIRECTIONS = ("vision", "text")


def make(name: str):
    cls = lookup("steering", name)
    method = cls(cls.Params())
    if isinstance(method, TrainedMethod):
        method.trained.update(cases.trained(name))
    return method


def answers(view, name, prompts, direction, strengths, n=4) -> list[list[str]]:
    return contrasted(view, make(name), prompts, direction, strengths, n)


def seen_logits(view, name, prompts, direction, strength, monkeypatch=None) -> torch.Tensor:
    """The combined logits [B, V] of the first token."""
    method, seen = make(name), []
    combine = method.combine
    method.combine = lambda *args: seen.append(combine(*args)) or seen[-1]
    contrasted(view, method, prompts, direction, [strength], 1)
    return seen[0]


def test_there_are_methods_to_hold_to_the_contract():
    assert {"vcd", "causalmm"} <= set(cases.logits_methods())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_strength_zero_is_the_models_own_answer(view, logits_method, direction):
    prompts = mixed_prompts()
    own = decode_texts(view, torch.tensor(cases.answers(view, prompts, n=4)))
    assert answers(view, logits_method, prompts, direction, [0.0]) == [own]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_other_strengths_change_the_logits(view, logits_method, direction):
    prompts = mixed_prompts()[:3]
    plain, contrasts = (seen_logits(view, logits_method, prompts, direction, s) for s in (0.0, 3.0))
    both = plain.isfinite() & contrasts.isfinite()
    assert ((plain - contrasts).abs().masked_fill(~both, 0).amax(-1) > 1e-3).any(), (
        "of some prompt: a method may find that one needs nothing"
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_row_is_the_same_alone_and_in_a_batch(view, logits_method, direction):
    prompts = mixed_prompts()
    together = seen_logits(view, logits_method, prompts, direction, 1.5)
    texts = answers(view, logits_method, prompts, direction, [1.5])[0]
    for i, prompt in enumerate(prompts):
        alone = seen_logits(view, logits_method, [prompt], direction, 1.5)[0]
        assert torch.equal(alone.isfinite(), together[i].isfinite())
        assert cases.close(alone[alone.isfinite()], together[i][alone.isfinite()], 5e-5)
        assert answers(view, logits_method, [prompt], direction, [1.5]) == [[texts[i]]]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_strengths_together_are_separate_runs(view, logits_method, direction):
    prompts = conflict_prompts(3)
    together = answers(view, logits_method, prompts, direction, [0.0, 1.0, 4.0])
    assert together == [answers(view, logits_method, prompts, direction, [s])[0] for s in (0.0, 1.0, 4.0)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision_works(logits_method, direction):
    view = tiny_view(dtype=torch.bfloat16, spread=1.0)
    logits = seen_logits(view, logits_method, conflict_prompts(2), direction, 1.0)
    assert logits.dtype == torch.float32 and not logits.isnan().any()


def test_the_same_call_gives_the_same_answer_and_leaves_the_generator_alone(view, logits_method):
    prompts = conflict_prompts(2)
    first = seen_logits(view, logits_method, prompts, "vision", 1.0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(seen_logits(view, logits_method, prompts, "vision", 1.0), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(logits_method, fails):
    view = cases.fresh_view()
    prompts = conflict_prompts(2)
    cases.logits(view, prompts)
    before, implementation = cases.traces(view), view.decoder.config._attn_implementation
    if fails:

        def refuse(*args):
            raise ZeroDivisionError

        handle = view.layers[1].register_forward_pre_hook(refuse)
        with pytest.raises(ZeroDivisionError):
            answers(view, logits_method, prompts, "vision", [1.0])
        handle.remove()
    else:
        answers(view, logits_method, prompts, "vision", [1.0])
    assert cases.traces(view) == before and view.decoder.config._attn_implementation == implementation
