"""The methods' mathematics: AMPS's scales by hand, its special cases, and the prompts of the baselines."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from factory.data.instructions import INSTRUCTIONS
from factory.data.prompt import Role, Segment
from factory.errors import UserError
from factory.registry import lookup
from factory.steer import Context, Steering
from factory.steer.regressor import RegressorParams, fit_g, g
from plugins.steering import amps as amps_module
from plugins.steering.amps import Amps, AmpsParams, deviation
from plugins.steering.l2s import L2SParams, LearnToSteer
from plugins.steering.static import Static
from tests.contract.cases import close, logits, random_states
from tests.tiny import conflict_prompts, tiny_view

CTX = Context(1)
NET = {"epochs": 5, "learning_rate": 1e-2, "hidden": 8}


def amps(**params) -> Amps:
    return Amps(AmpsParams(net=NET, **params))


def targets(monkeypatch, method: Amps, states) -> torch.Tensor:
    """What g is trained on [n, d]."""
    seen = []
    monkeypatch.setattr(amps_module, "fit_g", lambda h, v, net, seed, tasks: seen.append(v) or {})
    method.fit(states)
    return seen[0]


def scales(monkeypatch, method: Amps, states) -> list[float]:
    """The factor s of each sample's target."""
    v = targets(monkeypatch, method, states)
    return ((v * (states.toward - states.away)).sum(-1) / (states.toward - states.away).square().sum(-1)).tolist()


FOUR = replace(
    random_states(n=4),
    measured={"R_V": torch.tensor([0.2, 0.6, 0.5, 0.7])},
    tasks=["color", "color", "counting", "counting"],
)


def test_the_random_control_is_as_long_as_the_mean_difference_and_points_anywhere():
    states, cls = random_states(), lookup("steering", "random_vector")
    fitted = lambda **change: cls(cls.Params()).fit(replace(states, **change))["r"]
    v, r = (states.toward - states.away).mean(0), fitted()
    assert close(r.norm(), v.norm()) and torch.equal(r, fitted())
    others = [fitted(seed=1), fitted(direction="text" if states.direction == "vision" else "vision"), v]
    assert all(abs(float(torch.nn.functional.cosine_similarity(r, other, dim=0))) < 0.5 for other in others)


def test_beta_zero_is_learn_to_steer_bit_for_bit():
    states = random_states()
    plain = LearnToSteer(L2SParams(net=NET)).fit(states)
    state = amps(beta=0.0).fit(states)
    assert all(torch.equal(state[k], plain[k]) for k in plain)
    h = random_states(5).base
    assert torch.equal(amps(beta=0.0).delta(h, state, CTX), LearnToSteer(L2SParams(net=NET)).delta(h, plain, CTX))
    assert not torch.equal(amps(beta=0.5).fit(states)["decoder.weight"], plain["decoder.weight"])


@pytest.mark.parametrize(
    "params, direction, expected",
    [
        # anchors: color 0.4, counting 0.6; d = -1/2, 1/2, -1/6, 1/6
        ({"beta": 0.5}, "vision", [0.75, 1.25, 1 - 1 / 12, 1 + 1 / 12]),
        ({"beta": -1.0}, "vision", [1.5, 0.5, 1 + 1 / 6, 1 - 1 / 6]),
        ({"beta": 0.5, "anchor": "global"}, "vision", [0.7, 1.1, 1.0, 1.2]),  # r_bar = 0.5
        ({"beta": 0.5, "scale_form": "literal"}, "vision", [1.75, 2.25, 2 - 1 / 12, 2 + 1 / 12]),
        # toward text r is 1 - r_v: 0.8, 0.4, 0.5, 0.3 with anchors 0.6 and 0.4
        ({"beta": 0.6}, "text", [1.2, 0.8, 1.15, 0.85]),
        ({"beta": 0.6, "ratio": "r_v"}, "text", [0.7, 1.3, 0.9, 1.1]),
        ({"beta": 4.0}, "vision", [0.0, 2.0, 1 / 3, 5 / 3]),  # clipped to [0, 2]: -1 and 3
        ({"beta": 4.0, "clip": None}, "vision", [-1.0, 3.0, 1 / 3, 5 / 3]),
        ({"beta": 4.0, "clip": (0.5, 1.5)}, "vision", [0.5, 1.5, 0.5, 1.5]),
        ({"beta": 8.0, "scale_form": "literal"}, "vision", [0.0, 4.0, 2 / 3, 10 / 3]),
    ],
)
def test_scales_by_hand(monkeypatch, params, direction, expected):
    assert scales(monkeypatch, amps(**params), replace(FOUR, direction=direction)) == pytest.approx(expected, abs=1e-5)


def test_the_running_anchor_by_hand():
    d, anchors = deviation(torch.tensor([0.5, 0.6, 0.4]), ["a", "a", "a"], "ema")
    second = 0.9 * 0.5 + 0.1 * 0.6
    third = 0.9 * second + 0.1 * 0.4
    assert d.tolist() == pytest.approx([0.0, (0.6 - second) / second, (0.4 - third) / third], abs=1e-6)
    assert anchors["all"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("anchor", ["task", "global", "ema"])
def test_a_task_in_which_no_prompt_contributes_is_scaled_by_one(monkeypatch, anchor):
    nothing = replace(FOUR, measured={"R_V": torch.zeros(4)})
    assert scales(monkeypatch, amps(anchor=anchor), nothing) == pytest.approx([1.0] * 4, abs=1e-5)
    some = replace(FOUR, measured={"R_V": torch.tensor([0.0, 0.0, 0.5, 0.7])})
    assert scales(monkeypatch, amps(), some) == pytest.approx([1.0, 1.0, 1 - 1 / 12, 1 + 1 / 12], abs=1e-5)


def test_anchors_are_kept_with_the_artefact():
    state = amps().fit(FOUR)
    assert {k: round(v.item(), 6) for k, v in state.items() if k.startswith("anchor.")} == {
        "anchor.all": 0.5,
        "anchor.color": 0.4,
        "anchor.counting": 0.6,
    }


def test_negate_alpha_takes_the_vision_module_backwards(monkeypatch):
    """Toward text, states are collected with P+ and P- exchanged; the module is the vision module, and its sign is
    turned.
    """
    vision = random_states()
    text = replace(vision, direction="text", toward=vision.away, away=vision.toward)
    method = amps(text_mode="negate_alpha")
    ours, theirs = method.fit(text), method.fit(vision)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if k != "sign")
    h = random_states(5).base
    assert torch.equal(method.delta(h, ours, CTX), -method.delta(h, theirs, CTX))
    own = amps(text_mode="separate_module")
    assert torch.equal(targets(monkeypatch, amps(beta=0.0), text), text.toward - text.away)
    assert own.fit(text)["sign"] == 1


@pytest.mark.parametrize("beta", [0.5, -0.75])
def test_literal_is_one_plus_at_twice_the_strength_and_half_the_beta(monkeypatch, beta):
    """Exactly so for the targets; for the steering too where g is linear in its targets."""
    states = random_states()
    literal, plain = amps(beta=beta, scale_form="literal"), amps(beta=beta / 2)
    assert torch.equal(targets(monkeypatch, literal, states), 2 * targets(monkeypatch, plain, states))

    def linear(h, v, net, seed, tasks):
        start = fit_g(h, v * 0 + h, RegressorParams(epochs=1, hidden=8), seed)
        features = torch.tanh(h @ start["encoder.weight"].T + start["encoder.bias"])
        return {**start, "decoder.weight": torch.linalg.lstsq(features, v).solution.T}

    monkeypatch.setattr(amps_module, "fit_g", linear)

    def steered(method: Amps, alpha: float) -> torch.Tensor:
        where = method.where().model_copy(update={"layer": 1})
        return logits(tiny_view(), conflict_prompts(2), Steering(method, method.fit(states), where, alpha))

    assert close(steered(literal, 1.5), steered(plain, 3.0))
    assert not close(steered(literal, 1.5), steered(plain, 1.5), 1e-3)


@pytest.mark.parametrize(
    "measured, said",
    [
        ({}, "amps needs R_V of each training prompt: add `diagnostic: mcr` to the recipe"),
        ({"A": torch.ones(3), "B": torch.ones(3)}, "add `diagnostic: mcr` to the recipe; the recipe's gives A, B"),
        ({"R_V": torch.tensor([0.5, math.nan, 0.2])}, "for 1 of 3 the recipe's diagnostic gives no number"),
    ],
)
def test_amps_without_a_diagnosis_says_what_is_missing(measured, said):
    with pytest.raises(UserError) as refused:
        amps().fit(replace(random_states(n=3), measured=measured))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_beta_is_chosen_on_dev_unless_it_is_fixed():
    variants = amps(betas=(-1.0, 0.0, 0.25)).variants()
    assert list(variants) == ["beta=-1", "beta=0", "beta=0.25"]
    assert [v.params.beta for v in variants.values()] == [-1.0, 0.0, 0.25] and all(
        not v.variants() for v in variants.values()
    )
    assert amps(beta_policy="fixed").variants() == {}


def test_static_is_the_mean_difference():
    states = random_states(n=3)
    v = Static(lookup("steering", "static").Params()).fit(states)["v"]
    expected = sum(states.toward[i] - states.away[i] for i in range(3)) / 3
    assert torch.allclose(v, expected, atol=1e-6)


def test_g_by_hand():
    theta = {
        "encoder.weight": torch.tensor([[1.0, 0.0]]),
        "encoder.bias": torch.tensor([0.5]),
        "decoder.weight": torch.tensor([[2.0], [-1.0]]),
    }
    h = torch.tensor([[0.25, 9.0], [-1.0, 9.0]])
    assert g(theta, h, "tanh").tolist() == [
        pytest.approx([2 * math.tanh(0.75), -math.tanh(0.75)]),
        pytest.approx([2 * math.tanh(-0.5), -math.tanh(-0.5)]),
    ]
    assert g(theta, h, "relu").tolist() == [[1.5, -0.75], [0.0, 0.0]]


@pytest.mark.parametrize("loss", ["mse", "l2s_code"])
def test_training_brings_g_to_its_targets(loss):
    states = random_states(n=64)
    v = states.toward - states.away
    params = RegressorParams(epochs=40, learning_rate=5e-2, loss=loss)
    theta = fit_g(states.base, v, params, 0)
    assert (g(theta, states.base, "tanh") - v).square().mean() < 0.8 * v.square().mean()


def test_keeping_the_best_epoch_never_validates_worse_than_the_last():
    states = random_states(n=30)
    v, order = states.toward - states.away, torch.randperm(30, generator=torch.Generator().manual_seed(0))[:6]
    held = {}
    for keep in ("best", "last"):
        theta = fit_g(states.base, v, RegressorParams(epochs=40, learning_rate=5e-2, keep=keep), 0)
        held[keep] = (g(theta, states.base[order], "tanh") - v[order]).square().mean()
    assert held["best"] <= held["last"]


@pytest.mark.parametrize(
    "name, params, texts",
    [
        ("none", {}, []),
        ("instruction", {}, [INSTRUCTIONS["amps_rq1"]["text"]]),
        ("instruction", {"style": "mc2"}, [INSTRUCTIONS["mc2"]["text"]]),
        ("cot", {"think": "Think!"}, [INSTRUCTIONS["amps_rq1"]["text"], "Think!"]),
    ],
)
def test_what_the_baselines_say(name, params, texts):
    cls, prompt = lookup("steering", name), conflict_prompts(1)[0]
    changed = cls(cls.Params(**params)).rewrite(prompt, "text", [])
    assert [s.text for s in changed.segments[len(prompt.segments) :]] == texts
    assert changed.segments[: len(prompt.segments)] == prompt.segments


def test_an_instruction_can_stand_before_the_question():
    cls, prompt = lookup("steering", "instruction"), conflict_prompts(1)[0]
    changed = cls(cls.Params(style="mc2", at="before_question")).rewrite(prompt, "vision", [])
    assert [s.role for s in changed.segments] == [
        Role.IMAGE,
        Role.CONTEXT,
        Role.INSTRUCTION,
        Role.QUESTION,
        Role.OPTIONS,
    ]


@pytest.mark.parametrize("direction, lacks", [("vision", Role.CONTEXT), ("text", Role.IMAGE)])
def test_unimodal_leaves_the_other_modality_out(direction, lacks):
    cls, prompt = lookup("steering", "unimodal"), conflict_prompts(1)[0]
    changed = cls(cls.Params()).rewrite(prompt, direction, [])
    assert (
        changed.segments == tuple(s for s in prompt.segments if s.role != lacks)
        and len(changed.segments) == len(prompt.segments) - 1
    )


def test_worked_examples_come_first_each_a_whole_turn():
    cls, (prompt, *pool) = lookup("steering", "few_shot"), conflict_prompts(3)
    examples = [p.append(Segment(Role.ANSWER, answer)) for p, answer in zip(pool, "AB", strict=True)]
    method = cls(cls.Params(shots=2))
    changed = method.rewrite(prompt, "vision", examples)
    assert changed.segments == (*examples[0].segments, *examples[1].segments, *prompt.segments)
    assert method.shots == 2 and [m["role"] for m in changed.messages()] == ["user", "assistant"] * 2 + ["user"]
