"""Influence functions against retrainings, derivatives by plain autograd and plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from factory.train.influence import FORMS, Influence, Moment, Trained, gmres, trajectory
from factory.train.settle import Terrain, settled

torch.set_num_threads(1)


class Toy(NamedTuple):
    """Logistic regression without intercept on 120 samples of 6 features, 15 % of the labels flipped."""

    x: Tensor
    y: Tensor

    def losses(self, w: Tensor, index: Tensor) -> Tensor:
        return F.softplus(-self.y[index] * (self.x[index] @ w))


def toy(seed: int) -> Toy:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    x, towards = draw(120, 6), draw(6)
    y = torch.sign(x @ towards + 0.5 * draw(120))
    return Toy(x, torch.where(torch.rand(120, generator=rng) < 0.15, -y, y))


def field(of: Toy, lam: float, rho: float) -> Callable[[Tensor, Tensor], Tensor]:
    """g(w + eps(w)) + lam w of samples weighted by c [n]: 0 where training with SAM ends."""

    def slope(w: Tensor, c: Tensor) -> Tensor:
        return -(c * of.y * torch.sigmoid(-of.y * (of.x @ w))) @ of.x

    def at(w: Tensor, c: Tensor) -> Tensor:
        g = slope(w, c)
        return slope(w + rho * g / (g @ g).sqrt(), c) + lam * w

    return at


def retrained(of: Toy, lam: float, rho: float, start: Tensor, weights: Tensor) -> Tensor:
    """Where training ends [m, 6] under each of ``weights`` [m, n], by damped Newton steps until the field is 0."""
    at = torch.func.vmap(field(of, lam, rho))
    slope = torch.func.vmap(torch.func.jacrev(field(of, lam, rho)))
    w = start.expand(len(weights), -1).clone()
    for _ in range(60):
        size = at(w, weights).norm(dim=-1)
        if size.max() < 1e-13:
            break
        step, length = torch.linalg.solve(slope(w, weights), -at(w, weights)), torch.ones(len(w), 1).double()
        for _ in range(12):
            worse = at(w + length * step, weights).norm(dim=-1) > size
            length = torch.where(worse[:, None], length / 2, length)
        w = w + length * step
    assert at(w, weights).norm(dim=-1).max() < 1e-10, "the slow reference has to end where training does"
    return w


def trained(of: Toy, lam: float, rho: float) -> Trained:
    even = torch.full((1, 120), 1 / 120, dtype=torch.float64)
    w = retrained(of, lam, rho, torch.full((6,), 0.01, dtype=torch.float64), even)[0]
    return Trained(w, of.losses, 120, lam, rho)


def left_out(of: Toy, fitted: Trained) -> Tensor:
    """How each of 120 retrainings without a sample moves the weights [120, 6]."""
    weights = (1 - torch.eye(120, dtype=torch.float64)) / 119
    return retrained(of, fitted.decay, fitted.rho, fitted.w, weights) - fitted.w


def errors(fitted: Trained, truth: Tensor) -> dict[str, float]:
    """Relative error of every form over all samples."""
    out = {}
    for form in FORMS:
        told = torch.stack([Influence(fitted, form).removal([k]).x for k in range(fitted.n)])
        out[form] = float((told - truth).norm() / truth.norm())
    return out


@pytest.mark.parametrize("seed", range(4))
def test_the_total_form_is_the_derivative_of_retraining(seed):
    of, small = toy(seed), 1e-4
    fitted = trained(of, 0.05, 0.2)
    weights = torch.ones(10, 120, dtype=torch.float64)
    weights[range(10), range(10)] = 1 - small
    moved = retrained(of, 0.05, 0.2, fitted.w, weights / weights.sum(-1, keepdim=True)) - fitted.w
    for form, closest, farthest in (("total", 0, 1e-4), ("frozen", 0.02, 1), ("plain", 0.02, 1)):
        told = torch.stack([Influence(fitted, form).removal([k]).x for k in range(10)]) * 119 / 120 * small
        assert closest <= (told - moved).norm() / moved.norm() < farthest


@pytest.mark.parametrize("rho", [0.05, 0.2])
def test_on_the_toy_leaving_out_is_told_best_by_the_total_form(rho):
    for seed in range(5):
        of = toy(seed)
        fitted = trained(of, 0.05, rho)
        found = errors(fitted, left_out(of, fitted))
        assert found["total"] < 0.08 and found["total"] < found["frozen"] and found["total"] < found["plain"]
        assert fitted.standing.warning is None


def test_it_warns_where_the_ascent_turns_abruptly_and_where_training_had_not_ended():
    of = toy(1)
    abrupt = trained(of, 0.005, 0.05)
    assert "turns abruptly: the gradient's norm is 0.004" in abrupt.standing.warning
    plain = trained(of, 0.005, 0.0)
    assert plain.standing.warning is None and plain.standing.turn == 0
    early = Trained(plain.w + 0.1, of.losses, 120, 0.005)
    slope = torch.func.grad(lambda w: of.losses(w, torch.arange(120)).mean() + 0.0025 * w @ w)(early.w).norm()
    assert early.standing.slope == pytest.approx(float(slope)) and "had not ended" in early.standing.warning


def net(rows: int | None = None, decay: float = 0.1, rho: float = 0.3, dtype: torch.dtype = torch.float64) -> Trained:
    """A network of 3 tanh units on 12 samples, far from the end of training."""
    rng = torch.Generator().manual_seed(5)
    x, y, w = (torch.randn(*s, generator=rng, dtype=torch.float64).to(dtype) for s in ((12, 4), (12, 2), (21,)))

    def losses(w: Tensor, index: Tensor) -> Tensor:
        inner = torch.tanh(x[index] @ w[:12].view(3, 4).T + w[12:15])
        return (inner @ w[15:].view(2, 3).T - y[index]).square().mean(-1)

    return Trained(w, losses, 12, decay, rho, rows)


def ascent(f: Trained, w: Tensor) -> Tensor:
    g = torch.func.grad(lambda w: f.losses(w, torch.arange(12)).mean())(w)
    return w + f.rho * g / g.norm()


@pytest.mark.parametrize("rows", [None, 5])
def test_products_are_those_of_plain_autograd(rows):
    f = net(rows)
    v = torch.randn(21, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = lambda w: f.losses(w, torch.arange(12)).mean()
    H = torch.autograd.functional.hessian(mean, f.w)
    each = torch.autograd.functional.jacobian(lambda w: f.losses(w, torch.arange(12)), f.w)
    close = lambda a, b: torch.allclose(a, b, atol=1e-12)
    assert close(f.hessian(f.w), H) and close(f.curved(f.w, v), H @ v) and close(f.gradient(f.w), each.mean(0))
    assert close(f.each_gradient(f.w, torch.tensor([3, 7])), each[[3, 7]]) and close(f.along(f.w, v), each @ v)
    assert close(f.ascended, ascent(f, f.w))
    assert f.steepest == pytest.approx(float(torch.linalg.eigvalsh(H).abs().max()), rel=0.02)
    c = torch.arange(12).double()
    weighted = torch.func.grad(lambda w: (c * f.losses(w, torch.arange(12))).sum() / c.sum())(f.w)
    assert close(f.weighted(c).gradient(f.w), weighted)
    g = torch.func.grad(mean)(f.w)
    P = torch.autograd.functional.jacobian(lambda g: f.rho * g / g.norm(), g)
    assert close(f.turned(v), P @ v)


@pytest.mark.parametrize("solver", [{"exact": 21}, {"exact": 0, "tolerance": 1e-11}])
def test_the_total_form_solves_the_whole_derivative(solver):
    f = net()
    slope = lambda w, c: torch.func.grad(lambda w: (c * f.losses(w, torch.arange(12))).sum())(w)

    def at(w: Tensor, c: Tensor) -> Tensor:
        g = slope(w, c)
        return slope(w + f.rho * g / g.norm(), c) + f.decay * w

    even = torch.full((12,), 1 / 12, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda w: at(w, even), f.w) + 0.5 * torch.eye(21).double()
    of_weights = torch.autograd.functional.jacobian(lambda c: at(f.w, c), even)  # [21, 12]
    b = of_weights - (of_weights @ even)[:, None]
    truth = torch.linalg.solve(J, b) / 11
    influence = Influence(f, "total", damping=0.5, **solver)
    found = [influence.removal([k]) for k in range(12)]
    assert max(s.residual for s in found) < 1e-10
    assert torch.allclose(torch.stack([s.x for s in found], 1), truth, atol=1e-8)
    two = influence.removal([2, 9]).x
    assert torch.allclose(two, (truth[:, 2] + truth[:, 9]) * 11 / 10, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exact", [0, 21])
def test_what_a_sample_adds_to_a_score_is_what_its_removal_takes(form, exact):
    f = net()
    score = torch.randn(21, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    influence = Influence(f, form, damping=0.5, exact=exact, tolerance=1e-11)
    told, residual = influence.on_score(score)
    taken = [score @ Influence(f, form, damping=0.5, exact=21).removal([k]).x for k in range(12)]
    assert residual < 1e-10 and torch.allclose(told, -torch.stack(taken), atol=1e-9)


@pytest.mark.parametrize(("rho", "exact"), [(0.0, 1000), (0.0, 0), (0.05, 1000), (0.05, 0)])
def test_what_is_settled_stands_where_training_ends(rho, exact):
    f = net(decay=0.02, rho=rho)
    w, left = settled(f, terrain=Terrain(f, exact))
    field = lambda w: torch.func.grad(lambda w: f.losses(w, torch.arange(12)).mean())(ascent(f, w)) + 0.02 * w
    assert float(field(w).norm()) == pytest.approx(left * f.standing.sample, abs=1e-9) and left <= 1e-6
    assert torch.linalg.eigvals(torch.autograd.functional.jacobian(field, w)).real.min() > 0, "descent would stay here"
    assert float(field(f.w).norm()) > 0.1
    one = settled(f, steps=1, terrain=Terrain(f, exact))
    assert one.residual == pytest.approx(float(field(one.x).norm()) / f.standing.sample) and one.residual > left


def test_from_far_away_the_way_to_the_end_takes_gradients_and_hardly_a_product(monkeypatch):
    f, products = net(decay=0.02, rho=0.0), [0]
    curved = Trained.curved
    monkeypatch.setattr(
        Trained, "curved", lambda self, *args: products.__setitem__(0, products[0] + 1) or curved(self, *args)
    )
    assert settled(f, terrain=Terrain(f, 0)).residual <= 1e-6 and products[0] < len(f.w)


@pytest.mark.parametrize("exact", [0, 1000])
def test_trainings_without_a_sample_share_what_they_learn_of_the_curvature(exact, monkeypatch):
    of, lam = toy(0), 0.05
    w = retrained(of, lam, 0.0, torch.zeros(6).double(), torch.ones(1, 120).double() / 120)[0]
    f = Trained(w, of.losses, 120, lam)
    terrain, products, each = Terrain(f, exact), [0], []
    for name in ("curved", "hessian"):
        counted = getattr(Trained, name)
        count = lambda self, *args, counted=counted: products.__setitem__(0, products[0] + 1) or counted(self, *args)
        monkeypatch.setattr(Trained, name, count)
    for k in range(4):
        kept = (torch.arange(120) != k).double()
        truth = retrained(of, lam, 0.0, w, kept[None] / 119)[0]
        products[0] = 0
        found = settled(f.weighted(kept), terrain=terrain)
        each.append(products[0])
        assert found.residual <= 1e-6 and torch.allclose(found.x, truth, atol=1e-5)
    assert each[0] > 0 and each[2:] == [0, 0], "GMRES may end before it has seen all six directions"


def test_without_an_ascent_all_forms_are_one():
    f = net(rho=0.0)
    one, two, three = (Influence(f, form, damping=0.5).removal([4]).x for form in FORMS)
    assert torch.equal(one, two) and torch.equal(two, three)


def test_the_trajectory_is_a_loop_over_checkpoints_and_samples():
    f = net()
    aim = lambda w: torch.sin(w)
    points = [Moment(f.w * scale, rate) for scale, rate in ((0.3, 0.2), (0.7, 0.1))]
    truth = torch.zeros(12, dtype=torch.float64)
    for w, rate in points:
        there = ascent(f, w)
        for k in range(12):
            own = torch.func.grad(lambda w, k=k: f.losses(w, torch.tensor([k])).sum())(there)
            truth[k] -= rate * float(own @ aim(w)) / 12
    assert torch.allclose(trajectory(f, points, aim), truth, atol=1e-12)


def test_gmres_solves_what_is_not_symmetric_over_restarts_and_says_when_it_has_not():
    rng = torch.Generator().manual_seed(0)
    A = torch.eye(80).double() + torch.randn(80, 80, generator=rng, dtype=torch.float64) / 18
    b = torch.randn(80, generator=rng, dtype=torch.float64)
    truth = torch.linalg.solve(A, b)
    for restart in (80, 15):
        x, residual = gmres(lambda v: A @ v, b, 1e-10, 400, restart)
        assert torch.allclose(x, truth, atol=1e-7) and residual <= 1e-10
    x, residual = gmres(lambda v: A @ v, b, 1e-10, 3)
    assert residual == pytest.approx(float((b - A @ x).norm() / b.norm())) and 1e-10 < residual < 1
    assert gmres(lambda v: A @ v, torch.zeros_like(b), 1e-10, 3).residual == 0
