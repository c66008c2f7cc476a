"""The rival that trains: its update is PEFT's, its losses are written out pair by pair, training moves the model."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from factory.data.prompt import Role, Segment
from factory.errors import UserError
from factory.model.prefix import at_last, prefill
from factory.registry import lookup
from factory.steer.logits import contrasted
from tests.contract.cases import fresh_view
from tests.tiny import conflict_prompts, tiny_view

Lora = lookup("steering", "lora")


def answered(n=4):
    """Prompts that end with the one answer and with the other."""
    words = [("red", "blue"), ("three", "one"), ("a cat", "a dog"), ("left", "right")]
    prompts = conflict_prompts(n)
    return [[p.append(Segment(Role.ANSWER, words[i % 4][side])) for i, p in enumerate(prompts)] for side in (0, 1)]


def slow_log_p(view, prompt):
    """The sum of log-probabilities of the answer's tokens, token by token."""
    batch = view.encode([prompt])
    with torch.no_grad():
        logits = view.model(**batch).logits[0].double()
    said = [t for t, role in enumerate(batch.roles[0].tolist()) if role == Role.ANSWER]
    assert said
    return sum(float(logits[t - 1].log_softmax(-1)[batch.input_ids[0, t]]) for t in said)


def some_state(view, method, seed=0):
    rng = torch.Generator().manual_seed(seed)
    state = method.start(view, rng)
    return {k: torch.randn(t.shape, generator=rng) * 0.1 if k.endswith(".B") else t for k, t in state.items()}


def test_the_update_is_pefts():
    view, method = fresh_view(), Lora(Lora.Params(rank=4, alpha=6.0, targets=("query", "mlp_out")))
    state = some_state(view, method)
    batch = view.encode(conflict_prompts(2))

    def last():
        with torch.no_grad():
            return at_last(prefill(view, batch)[0], batch.attention_mask)

    plain = last()
    with method.acting(view, state, 1.0):
        ours = last()
    with method.acting(view, state, 0.5):
        half = last()
    assert torch.equal(last(), plain) and not torch.allclose(ours, half) and not torch.allclose(ours, plain)
    names = sorted({k.rpartition(".")[0] for k in state})
    peft = get_peft_model(view.model, LoraConfig(r=4, lora_alpha=6, target_modules=names, lora_dropout=0.0))
    for name, module in peft.base_model.model.named_modules():
        if name in names:
            module.lora_A["default"].weight.data.copy_(state[f"{name}.A"])
            module.lora_B["default"].weight.data.copy_(state[f"{name}.B"])
    assert len(names) == 2 * view.depth
    theirs = last()
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))


def test_the_losses_are_those_of_the_pairs_one_by_one():
    """TRL's loss_type sigmoid, restated: -logsigmoid(beta ((log pi+ - log ref+) - (log pi- - log ref-)))."""
    view, beta = tiny_view(), 0.3
    wanted, other = answered(3)
    method = Lora(Lora.Params(loss="preference", beta=beta))
    state = some_state(view, method)
    ref = [[slow_log_p(view, p) for p in side] for side in (wanted, other)]
    with method.acting(view, state, 1.0):
        pi = [[slow_log_p(view, p) for p in side] for side in (wanted, other)]
    expected = 0.0
    for i in range(3):
        logits = (pi[0][i] - ref[0][i]) - (pi[1][i] - ref[1][i])
        expected += -math.log(1 / (1 + math.exp(-beta * logits))) / 3
    assert abs(expected - math.log(2)) > 1e-3, "the update moves the pairs"
    assert float(method.loss(view, state, wanted, other)) == pytest.approx(expected, rel=1e-4)
    assert float(method.loss(view, method.start(view, torch.Generator()), wanted, other)) == pytest.approx(math.log(2))
    plain = Lora(Lora.Params())
    assert float(plain.loss(view, state, wanted, other)) == pytest.approx(-sum(pi[0]) / 3, rel=1e-4)


@pytest.mark.parametrize("loss", ["answers", "preference"])
def test_training_raises_the_wanted_answer_and_leaves_the_model_alone(loss):
    view = tiny_view()
    method = Lora(Lora.Params(loss=loss, epochs=4, batch_size=2, learning_rate=1e-2, beta=1.0))
    wanted, other = answered()
    margin = lambda: sum(slow_log_p(view, a) - slow_log_p(view, b) for a, b in zip(wanted, other, strict=True))
    before = margin()
    state = method.train(view, wanted, other, 0)
    assert margin() == before and all(p.grad is None and not p.requires_grad for p in view.model.parameters())
    with method.acting(view, state, 1.0):
        after = margin()
    assert after > before + 1
    again = method.train(view, wanted, other, 0)
    assert all(torch.equal(again[k], t) for k, t in state.items())


def test_untrained_it_is_refused_and_at_strength_zero_it_is_the_model():
    view, method, prompts = tiny_view(), Lora(Lora.Params()), conflict_prompts(2)
    contrasted(view, method, prompts, "vision", [0.0], 2)
    with pytest.raises(UserError, match="has to be trained first"):
        contrasted(view, method, prompts, "vision", [1.0], 2)
