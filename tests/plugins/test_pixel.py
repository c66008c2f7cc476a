"""PIXEL against its equations: the closed form is the least strength that reaches the cosine, the subspace is the
SVD's.
"""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from factory.errors import UserError
from factory.model.prefix import prefill
from factory.steer import Context, Steering, steer
from plugins.steering.pixel import Pixel, PixelParams, directions, least_strength
from tests.contract.cases import close, random_states
from tests.tiny import mixed_prompts, tiny_view

CTX = Context(1)
VECTORS = arrays(np.float64, 5, elements=st.floats(-50, 50).map(lambda x: round(x, 3)))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@settings(deadline=None, max_examples=300)
@given(h=VECTORS, v=VECTORS, s=st.floats(0.05, 0.99))
def test_the_closed_form_reaches_the_cosine_with_the_least_strength(h, v, s):
    h, v = torch.from_numpy(h), torch.from_numpy(v)
    if v.norm() < 0.1 or (h - (h @ v) / (v @ v) * v).norm() < 1e-2:
        return  # no direction, or the cosine jumps from -1 to 1 along the line
    alpha = float(least_strength(h[None], v[None], s))
    assert alpha >= 0
    assert cosine(h + alpha * v, v) >= s - 1e-6
    for less in (0.0, 0.5, 0.99, 0.9999):
        assert alpha == 0 or cosine(h + less * alpha * v, v) < s, "a smaller strength would do"


def test_a_state_that_has_the_cosine_already_is_left_alone():
    v = torch.tensor([[2.0, 0.0, 0.0]])
    assert least_strength(torch.tensor([[5.0, 0.1, 0.0]]), v, 0.85).item() == 0
    assert least_strength(torch.tensor([[0.0, 3.0, 4.0]]), v, 0.6).item() == pytest.approx(5 * 0.75 / 2)


def test_the_subspace_is_that_of_both_views_centred_and_scaled():
    states = random_states(n=10, d=6)
    rows = [(t - b).tolist() for t, b in zip(states.tails[1], states.tails[0], strict=True)] + [
        (t - b).tolist() for t, b in zip(states.toward, states.base, strict=True)
    ]
    D = np.array(rows)
    scaled = (D - D.mean(0)) / D.std(0, ddof=1)
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    expected = np.zeros(6)
    for i in np.argsort(values)[::-1][:2]:
        expected += vectors[:, i] * (1 if vectors[:, i] @ D.mean(0) >= 0 else -1)
    v = Pixel(PixelParams()).fit(states)["v"].numpy()
    assert np.abs(v - expected).max() < 1e-4


def test_the_contrast_can_be_the_opposite_instruction():
    states = random_states(n=10, d=6)
    D = torch.cat([states.tails[1] - states.tails[2], states.toward - states.away])
    assert torch.allclose(Pixel(PixelParams(contrast="opposite")).fit(states)["v"], directions(D, 2).sum(0))


def test_each_token_gets_its_own_strength_within_the_clip():
    method = Pixel(PixelParams(s=0.7))
    state = method.fit(random_states())
    h = random_states(3).base
    moved = h + method.delta(h, state, CTX)
    assert all(cosine(m, state["v"]) >= 0.7 - 1e-5 for m in moved)
    mistral = Pixel(PixelParams(preset="mistral"))
    assert close(mistral.delta(h, state, CTX), 2 * state["v"].expand_as(h))
    assert (
        Pixel(PixelParams(clip=(0.0, 0.5))).delta(h, state, CTX).norm(dim=-1) <= 0.5 * state["v"].norm() + 1e-5
    ).all()


def test_the_sample_residual_is_orthogonal_to_the_global_direction():
    method = Pixel(PixelParams(rho=-0.5, clip=(1.0, 1.0), net={"epochs": 3, "hidden": 8}))
    state = method.fit(random_states())
    h = random_states(3).base
    rest = method.delta(h, state, CTX) - state["v"]
    assert torch.allclose(rest @ state["v"], torch.zeros(len(h)), atol=1e-4)
    assert torch.allclose(rest.norm(dim=-1), torch.full((len(h),), 0.5), atol=1e-5)
    assert rest.std(0).max() > 1e-3, "it is each sample's own"


def test_presets_say_which_tokens_and_whether_the_answer_is_steered():
    assert [
        (Pixel(PixelParams(preset=p)).where().take, Pixel(PixelParams(preset=p)).where().generated)
        for p in ("llama", "mistral", "bbq")
    ] == [
        ("last:3", True),
        ("last:1", True),
        ("last:1", False),
    ]


def test_a_scan_tries_each_tail_with_and_without_the_answer():
    scan = Pixel(PixelParams(preset="scan", tails=(1, 4)))
    found = {name: (m.where().take, m.where().generated) for name, m in scan.variants().items()}
    assert found == {
        "last 1": ("last:1", False),
        "last 1 and the answer": ("last:1", True),
        "last 4": ("last:4", False),
        "last 4 and the answer": ("last:4", True),
    }
    states, h = random_states(), random_states(3).base
    for chosen in scan.variants().values():
        assert chosen.variants() == {} and chosen.params.preset == "scan"
        state = chosen.fit(states)
        assert close(chosen.delta(h, state, CTX), Pixel(PixelParams()).delta(h, state, CTX)), "llama's clip"
    assert Pixel(PixelParams()).variants() == {}


def test_a_scanned_position_moves_its_tokens_alone_each_by_the_least_strength():
    """Every strength sought by halving, token by token, in a forward without any of the method's code."""
    view, s = tiny_view(), 0.7
    method = Pixel(PixelParams(preset="scan", tails=(3,), answers=(False,), s=s))
    state = {"v": 5 * torch.randn(view.width, generator=torch.Generator().manual_seed(1))}
    batch = view.encode(mixed_prompts())
    steering = Steering(method, dict(state), method.placed(state, 1))
    seen = []
    for steerings in ([], [steering]):
        with torch.no_grad(), steer(view, steerings):
            handle = view.layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
            prefill(view, batch)
            handle.remove()
    plain, moved = seen
    some = 0
    for row in range(batch.size):
        tokens = [t for t in range(plain.shape[1]) if batch.attention_mask[row, t]]
        for t in tokens:
            h = plain[row, t].double()
            if t not in tokens[-3:]:
                assert torch.equal(moved[row, t], plain[row, t])
                continue
            low, high, v = 0.0, 200.0, state["v"].double()
            if cosine(h, v) >= s:
                high = 0.0
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if cosine(h + middle * v, v) >= s else (middle, high)
            assert torch.allclose(moved[row, t].double(), h + high * v, atol=1e-3)
            some += high > 0
    assert some


def test_without_the_second_view_it_says_what_is_missing():
    with pytest.raises(UserError, match="tail"):
        Pixel(PixelParams()).fit(replace(random_states(), tails=None))
