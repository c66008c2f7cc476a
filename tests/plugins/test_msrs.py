"""MSRS against its equations, spelt out slowly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.prefix import prefill
from factory.steer import Context, Steering, steer
from plugins.steering.msrs import Msrs, MsrsParams, leading, mask, moved, subspaces
from tests.contract.cases import close, random_states
from tests.tiny import mixed_prompts, tiny_view

CTX = Context(1)
FEW = {"epochs": 20, "hidden": 8}


def low_rank(n: int, axes: torch.Tensor, sizes: list[float], seed: int) -> torch.Tensor:
    return torch.randn(n, len(sizes), generator=torch.Generator().manual_seed(seed)) * torch.tensor(sizes) @ axes


def test_shared_and_private_subspaces_are_found_where_they_were_put():
    axes = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0))).Q.T
    tau = [low_rank(80, axes[[0, 1 + i]], [10.0, 1.0], i) for i in range(3)]
    S, part = subspaces(tau, 0.9, 8, 1)
    assert part.tolist() == [-1, 0, 1, 2]
    assert torch.allclose(S @ S.T, torch.eye(4), atol=1e-4)
    assert [round(abs(float(S[k] @ axes[k])), 1) for k in range(4)] == [1.0] * 4


def test_the_shared_subspace_is_the_smallest_with_its_share_of_the_energy():
    axes = torch.eye(6)
    x = torch.cat([axes[:1] * 3, axes[1:2] * 2, axes[2:3] * 1])  # energies 9, 4, 1 of 14
    assert [len(leading(x, e, 8)) for e in (0.5, 0.64, 0.7, 0.93, 1.0)] == [1, 1, 2, 3, 3]
    assert len(leading(x, 1.0, 2)) == 2 and len(leading(torch.zeros(4, 6), 0.6, 8)) == 0


def test_phi_row_by_row():
    method = Msrs(MsrsParams(**FEW))
    state = method.fit(random_states())
    h = random_states(4, n=5).base
    delta = method.delta(h, state, CTX)
    R, W, b = (state[k] for k in ("R", "W", "b"))
    for i in range(len(h)):
        inner = [math.tanh(float(h[i] @ state["mask.in"][:, j] + state["mask.bias"][j])) for j in range(8)]
        expected = torch.zeros(h.shape[1])
        for k in range(len(R)):
            m = 1 / (
                1
                + math.exp(
                    -(
                        sum(x * float(w) for x, w in zip(inner, state["mask.out"][:, k], strict=True))
                        + float(state["mask.prior"][k])
                    )
                )
            )
            expected += m * float(W[k] @ h[i] + b[k] - R[k] @ h[i]) * R[k]
        assert close(delta[i], expected, 1e-4)


def test_training_moves_states_toward_the_instructed_ones_and_starts_from_rest():
    states = random_states(n=48)
    method = Msrs(MsrsParams(epochs=150))
    start = Msrs(MsrsParams(epochs=1, learning_rate=1e-30)).fit(states)  # a step that moves next to nothing
    assert moved(states.base, start).abs().max() < 1e-20
    state, v = method.fit(states), states.toward - states.away
    assert (method.delta(states.base, state, CTX) - v).square().mean() < 0.5 * v.square().mean()


def test_the_mask_learns_its_prior_where_that_is_all_that_counts():
    states = replace(random_states(n=40), tasks=["a"] * 20 + ["b"] * 20)
    states.base[:20, 0] += 5
    method = Msrs(MsrsParams(attributes="tasks", mask_weight=1e3, epochs=300))
    state = method.fit(states)
    m, part = mask(states.base, state), state["part"]
    assert set(part.tolist()) == {-1, 0, 1}
    for rows, own, other in ((slice(0, 20), 0, 1), (slice(20, 40), 1, 0)):
        assert m[rows][:, part == own].mean() > 0.8 and m[rows][:, part == other].mean() < 0.2
        assert m[rows][:, part == -1].mean() > 0.8


APART = ({"tasks": ["a"]}, {"tasks": ["b", "c"], "toward": "other"})


def test_attributes_that_pull_apart_are_fitted_as_if_put_together_by_hand():
    states = replace(random_states(n=24), tasks=["a", "b", "c", "d"] * 6)
    method = Msrs(MsrsParams.model_validate({"attributes": APART, **FEW}))
    tau, own, v = method.attributes(states)
    D = states.toward - states.away
    for i, task in enumerate(states.tasks):
        assert int(own[i]) == {"a": 0, "b": 1, "c": 1, "d": -1}[task]
        assert task == "d" or torch.equal(v[i], D[i] if task == "a" else -D[i])
    assert [t.tolist() for t in tau] == [v[own == 0].tolist(), v[own == 1].tolist()]
    kept = [i for i, task in enumerate(states.tasks) if task != "d"]
    base, toward, away = (getattr(states, name)[kept].clone() for name in ("base", "toward", "away"))
    swapped = [j for j, i in enumerate(kept) if states.tasks[i] != "a"]
    toward[swapped], away[swapped] = away[swapped].clone(), toward[swapped].clone()
    named = ["a" if states.tasks[i] == "a" else "bc" for i in kept]
    by_hand = replace(states, base=base, toward=toward, away=away, tasks=named)
    for key, expected in Msrs(MsrsParams.model_validate({"attributes": "tasks", **FEW})).fit(by_hand).items():
        assert close(method.fit(states)[key].float(), expected.float()), key
    with pytest.raises(UserError, match=r"attributes\.1: no training prompt is of e.*There are: a, b, c, d"):
        Msrs(MsrsParams.model_validate({"attributes": [{"tasks": ["a"]}, {"tasks": ["e"]}]})).fit(states)


def test_two_attributes_at_once_move_each_prompt_its_own_way():
    """Planted: states of either attribute lie apart, and their movements are opposite along one shared axis."""
    states = replace(random_states(n=40), tasks=["a"] * 20 + ["b"] * 20)
    states.base[:20, 0] += 8
    v = torch.zeros_like(states.base)
    v[:, 1] = 3.0
    states = replace(states, toward=states.base + v / 2, away=states.base - v / 2)
    at_once = [{"tasks": ["a"]}, {"tasks": ["b"], "toward": "other"}]
    method = Msrs(MsrsParams.model_validate({"attributes": at_once, "epochs": 300, "mask_weight": 0.0}))
    delta = method.delta(states.base, method.fit(states), CTX)
    assert delta[:20, 1].mean() > 2 and delta[20:, 1].mean() < -2
    alone = Msrs(MsrsParams.model_validate({"attributes": at_once[:1], "epochs": 300}))
    assert alone.delta(states.base, alone.fit(states), CTX)[:20, 1].mean() > 2


def test_alignment_keeps_the_rows_at_their_subspaces():
    states = random_states()
    S, _ = subspaces(Msrs(MsrsParams()).attributes(states)[0], 0.6, 8, 4)
    cos = [
        float((R * S).sum() / (R.norm() * S.norm()))
        for R in (Msrs(MsrsParams(align_weight=w, epochs=60)).fit(states)["R"] for w in (0.0, 1e4))
    ]
    assert cos[0] < cos[1] and cos[1] > 0.99


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_chosen_token_of_each_attribute_is_the_one_most_in_its_subspace(side):
    view, method = tiny_view(), Msrs(MsrsParams(tokens="argmax", **FEW))
    state, batch, seen = method.fit(random_states()), view.encode(mixed_prompts(), side), []
    steering = Steering(method, dict(state), method.where().model_copy(update={"layer": 1}))
    for steerings in ([], [steering]):
        with torch.no_grad(), steer(view, steerings):
            handle = view.layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
            prefill(view, batch)
            handle.remove()
    moved_tokens = (seen[0] != seen[1]).any(-1)
    for row in range(batch.size):
        expected = set()
        for i in {int(p) for p in state["part"]} - {-1}:
            R_i = state["R"][state["part"] == i]
            sizes = {
                t: float((R_i.T @ (R_i @ seen[0][row, t])).norm())
                for t in range(batch.roles.shape[1])
                if batch.roles[row, t] != Role.PAD
            }
            expected.add(max(sizes, key=sizes.get))
        assert set(moved_tokens[row].nonzero()[:, 0].tolist()) == expected
