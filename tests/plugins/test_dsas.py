"""DSAS against its equations: the gate is a logistic regression on principal components, folded into one affine map."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from factory.registry import lookup
from factory.steer import Context
from factory.steer.gate import fit_gate
from plugins.steering.dsas import Dsas, DsasParams
from tests.contract.cases import close, random_states, random_trials

CTX = Context(1)


def static(states):
    return lookup("steering", "static")(lookup("steering", "static").Params()).fit(states)["v"]


def calibrated(**params):
    method, states = Dsas(DsasParams(**params)), random_states()
    state = method.fit(states)
    return method, method.calibrate(state, random_trials(method, state)), states


def test_the_gate_is_the_regression_that_gradient_descent_finds():
    """The penalised, class-balanced likelihood on standardised components, minimised slowly in its own coordinates."""
    rng = torch.Generator().manual_seed(0)
    t = torch.randn(40, 12, generator=rng) @ torch.randn(12, 12, generator=rng)
    source = (t[:, 0] + torch.randn(40, generator=rng)) > 1
    gate = fit_gate(t, source, 3, 0.05)
    x = (t - t.mean(0)).double()
    components = torch.linalg.eigh(x.T @ x).eigenvectors.flip(-1)[:, :3]
    z = x @ components
    z = z / z.std(0)
    theta = torch.zeros(4, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = 40 * 0.05 / 2 * theta[:3].square().sum() + 40e-6 / 2 * theta[3] ** 2
        for i in range(40):
            p = torch.sigmoid(z[i] @ theta[:3] + theta[3])
            share = 40 / (2 * source.sum()) if source[i] else 40 / (2 * (~source).sum())
            loss = loss - share * (p.log() if source[i] else (1 - p).log())
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = torch.sigmoid(z @ theta[:3] + theta[3]).detach().float()
    assert close(torch.sigmoid(t @ gate["w"] + gate["b"]), expected, 1e-3)
    right = (expected > 0.5) == source
    assert gate["accuracy"].item() == pytest.approx(
        float((right[source].float().mean() + right[~source].float().mean()) / 2)
    )


def test_every_token_is_gated_by_itself():
    method, state, states = calibrated()
    h = random_states(5).base
    expected = torch.stack([static(states) / (1 + math.exp(-float(t @ state["dsas.w"] + state["dsas.b"]))) for t in h])
    assert close(method.delta(h, state, CTX), expected)
    assert torch.equal(method.gain(h, state, CTX), torch.ones(len(h))) and method.reads == "per_token"


def test_a_prompt_can_be_gated_once_and_the_inner_method_keeps_its_reading():
    method, state, _ = calibrated(of={"type": "l2s"}, gate="prompt")
    h = random_states(5).base
    inner = method.inner
    assert method.reads == inner.reads == "last_prompt" and method.where() == inner.where()
    assert torch.equal(method.delta(h, state, CTX), inner.delta(h, state, CTX))
    assert close(method.gain(h, state, CTX), torch.sigmoid(h @ state["dsas.w"] + state["dsas.b"]))


def test_prompts_that_follow_already_are_steered_less():
    method, states = Dsas(DsasParams()), random_states()
    state = method.fit(states)
    trials = random_trials(method, state)
    follows = trials.base[:, 0] > trials.base[:, 0].median()
    base = trials.base.clone()
    base[follows] += 10 * torch.nn.functional.normalize(torch.ones(base.shape[1]), dim=0) * base.std()
    gated = method.calibrate(
        state, replace(trials, base=base, follow=follows[:, None], error=torch.zeros_like(follows)[:, None])
    )
    size = method.delta(base, gated, CTX).norm(dim=-1)
    assert size[follows].max() < size[~follows].min() and gated["dsas.accuracy"] == 1


@pytest.mark.parametrize("follow, share", [(True, 1 / 12), (False, 11 / 12)])
def test_where_all_prompts_are_alike_the_gate_is_constant(follow, share):
    gate = fit_gate(torch.randn(10, 4), torch.full((10,), not follow), 5, 0.01)
    assert gate["w"].abs().max() == 0 and torch.sigmoid(gate["b"]).item() == pytest.approx(share)


def test_it_gates_a_method_with_trials_of_its_own():
    method, states = Dsas(DsasParams(of={"type": "dose", "doses": [0.5, 2.0], "gate_epochs": 3})), random_states()
    assert method.trial_strengths == (0.0, 0.5, 2.0)
    state = method.fit(states)
    state = method.calibrate(state, random_trials(method, state))
    assert {"dsas.w", "gate.mean"} <= state.keys()


@pytest.mark.parametrize(
    "of, says",
    [
        ({"type": "statik"}, "static"),
        ({"type": "cot"}, "adds vectors"),
        ({"type": "dsas"}, "does not gate itself"),
        ({"type": "l2s", "nett": 1}, "nett"),
        ({}, "should name a steering plugin"),
    ],
)
def test_a_mistake_in_the_inner_method_is_said_at_once(of, says):
    with pytest.raises(ValidationError, match=says):
        DsasParams(of=of)
