"""Influence functions: how far removing a training sample moves what was trained, and a score of it.

At a stationary point of the mean loss of n samples with weight decay lam, trained with or without sharpness-aware
minimisation (``factory.train.sam``): g(w + eps) + lam w = 0, eps = rho u, u = g(w) / ||g(w)||. With P = rho (I - u u^T)
/ ||g(w)||, the derivative of eps with regard to g,

    total:   J = H(w+eps) (I + P H(w)) + lam I     b_k = l_k'(w+eps) - g(w+eps) + H(w+eps) P l_k'(w)
    frozen:  J = H(w+eps) + lam I                  b_k = l_k'(w+eps) - g(w+eps)
    plain:   J = H(w) + lam I                      b_k = l_k'(w) - g(w)

and retraining on the mean of the others moves w by J^-1 b_k / (n - 1), to first order. ``total`` differentiates the
ascent too (ours: the theorems of arXiv 2507.04059 are in no public source; SPEC-2 12.5 derives this one); the others
are the usual shortcuts. With rho 0 all three are Koh and Liang's influence function (ICML 2017, arXiv 1703.04730,
equation 1). J of ``total`` is not symmetric, so that it is solved by GMRES, and densely where w is small.

    trajectory:  - sum_t eta_t l_k'(w_t + eps_t) . s'(w_t) / n      (TracIn, NeurIPS 2020, arXiv 2002.08484, eq. 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["total", "frozen", "plain"]
FORMS: tuple[Form, ...] = ("total", "frozen", "plain")
Losses = Callable[[Tensor, Tensor], Tensor]
"""The losses [k] of samples, from weights [p] and the samples' numbers [k]; differentiable twice in the weights."""

MOVED, TURNED = 1.0, 0.5  # above them a first-order form is not to be trusted (docs/guides/influence.md)
LOOKED_AT = 64  # samples whose gradients are measured for ``Standing``
POWER_STEPS = 20
LOOKED_EVERY = 5  # steps of GMRES between two looks at how much is left
SMALLEST = 1e-30


class Standing(NamedTuple):
    """Whether weights stand where the closed forms hold.

    ``gradient`` ||g(w)||, ``slope`` ||g(w + eps) + lam w||, which is 0 where training has ended, and ``sample``, the
    mean length of a sample's gradient. ``turn``: by how many radians leaving a sample out turns the ascent, on
    average over the samples (0 without one).
    """

    gradient: float
    slope: float
    sample: float
    turn: float
    samples: int

    @property
    def moves(self) -> float:
        """The slope in units of what leaving a sample out changes in it: above 1 training on moves w further."""
        return self.slope * self.samples / max(self.sample, SMALLEST)

    @property
    def warning(self) -> str | None:
        """Why the closed forms are not to be trusted here; None where they are."""
        if self.moves > MOVED:
            return (
                f"training had not ended: the gradient's norm there is {self.slope:.2g}, which is {self.moves:.2g}"
                " times what leaving one sample out changes, so that training on would move the weights further"
            )
        if self.turn > TURNED:
            return (
                f"the ascent turns abruptly: the gradient's norm is {self.gradient:.2g}, so that leaving one sample out"
                f" turns it by {self.turn:.2g} radians (trusted below {TURNED})"
            )
        return None


class Solved(NamedTuple):
    """x of A x = b, and ||b - A x|| / ||b||."""

    x: Tensor
    residual: float


@dataclass(frozen=True)
class Trained:
    """What was trained: weights ``w`` [p] at the mean of ``losses`` over ``n`` samples, with ``decay`` lam and an
    ascent of length ``rho`` (0: none). ``rows`` samples at a time are held in memory (None: all).
    """

    w: Tensor
    losses: Losses
    n: int
    decay: float = 0.0
    rho: float = 0.0
    rows: int | None = None

    def weighted(self, weights: Tensor) -> Trained:
        """The same with each sample's loss weighed by ``weights`` [n], the mean being over their sum."""
        c = weights * self.n / weights.sum()
        return replace(self, losses=lambda w, index: c[index] * self.losses(w, index))

    def at(self, w: Tensor) -> Trained:
        """The same training at other weights [p]."""
        return replace(self, w=w)

    def _parts(self) -> Iterator[Tensor]:
        yield from torch.arange(self.n, device=self.w.device).split(self.rows or self.n)

    def gradient(self, at: Tensor) -> Tensor:
        """g [p], the gradient of the mean loss ``at`` weights [p]."""
        return self.descent(at)[1]

    def descent(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss [] ``at`` weights [p], and its gradient g [p]."""
        w, total, g = at.detach().requires_grad_(), at.new_zeros(()), torch.zeros_like(at)
        for part in self._parts():
            with torch.enable_grad():
                loss = self.losses(w, part).sum()
                g += torch.autograd.grad(loss, w)[0]
            total += loss.detach()
        return total / self.n, g / self.n

    def curved(self, at: Tensor, v: Tensor) -> Tensor:
        """H v [p], the Hessian of the mean loss ``at`` weights [p] times ``v`` [p]."""
        w, out = at.detach().requires_grad_(), torch.zeros_like(v)
        for part in self._parts():
            with torch.enable_grad():
                (g,) = torch.autograd.grad(self.losses(w, part).sum(), w, create_graph=True)
                out += torch.autograd.grad(g, w, v, materialize_grads=True)[0]
        return out / self.n

    def hessian(self, at: Tensor) -> Tensor:
        """H [p, p] of the mean loss ``at`` weights [p], written out."""
        w, out = at.detach().requires_grad_(), at.new_zeros(len(at), len(at))
        for part in self._parts():
            with torch.enable_grad():
                (g,) = torch.autograd.grad(self.losses(w, part).sum(), w, create_graph=True)
            for i, one in enumerate(torch.eye(len(at), dtype=at.dtype, device=at.device)):
                out[i] += torch.autograd.grad(g, w, one, retain_graph=True, materialize_grads=True)[0]
        return out / self.n

    def each_gradient(self, at: Tensor, index: Tensor) -> Tensor:
        """l_k' [k, p] of some samples ``at`` weights [p]."""
        w = at.detach().requires_grad_()
        with torch.enable_grad():
            each = [torch.autograd.grad(self.losses(w, i[None]).sum(), w)[0] for i in index]
        return torch.stack(each)

    def along(self, at: Tensor, v: Tensor) -> Tensor:
        """l_k'(``at``) . v of every sample [n], without a gradient of each."""
        w, out = at.detach().requires_grad_(), []
        for part in self._parts():
            with torch.enable_grad():
                each = self.losses(w, part)
                weight = torch.zeros_like(each, requires_grad=True)
                (back,) = torch.autograd.grad(each, w, weight, create_graph=True)
                out.append(torch.autograd.grad(back, weight, v)[0])
        return torch.cat(out)

    @cached_property
    def slope(self) -> Tensor:
        """g(w) [p]."""
        return self.gradient(self.w)

    @cached_property
    def ascended(self) -> Tensor:
        """w + eps(w) [p]; w itself where rho or g(w) is 0."""
        return self.w + self.rho * self.slope / self.slope.norm().clamp_min(SMALLEST) if self.rho else self.w

    def turned(self, v: Tensor) -> Tensor:
        """P v [p]: how the ascent changes where the gradient changes by ``v`` [p]."""
        if not self.rho:
            return torch.zeros_like(v)
        length = self.slope.norm().clamp_min(SMALLEST)
        u = self.slope / length
        return self.rho * (v - (u @ v) * u) / length

    @cached_property
    def field(self) -> Tensor:
        """g(w + eps) + lam w [p], which is 0 where training has ended."""
        return self.gradient(self.ascended) + self.decay * self.w

    @cached_property
    def steepest(self) -> float:
        """The largest curvature of the mean loss at w, by power iteration."""
        v = torch.randn(len(self.w), generator=torch.Generator().manual_seed(0)).to(self.w)
        for _ in range(POWER_STEPS):
            v = self.curved(self.w, v / v.norm().clamp_min(SMALLEST))
        return float(v.norm())

    @cached_property
    def standing(self) -> Standing:
        index = torch.linspace(0, self.n - 1, min(self.n, LOOKED_AT)).long().to(self.w.device)
        there = self.each_gradient(self.ascended, index).norm(dim=-1).mean()
        turn = 0.0
        if self.rho:
            turns = [self.turned(g).norm() for g in self.each_gradient(self.w, index)]
            turn = float(torch.stack(turns).mean()) / (self.rho * self.n)
        return Standing(float(self.slope.norm()), float(self.field.norm()), float(there), turn, self.n)


@dataclass(frozen=True)
class Influence:
    """The closed ``form`` of what removing samples of ``fitted`` does. ``damping`` is added to lam in J.

    Up to ``exact`` weights J is written out and solved; beyond, GMRES takes ``steps`` Hessian products at most, until
    the residual is ``tolerance`` of the right-hand side.
    """

    fitted: Trained
    form: Form = "total"
    damping: float = 0.0
    exact: int = 1000
    tolerance: float = 1e-5
    steps: int = 200

    def removal(self, index: Sequence[int] | Tensor) -> Solved:
        """How retraining on the mean of the others moves the weights [p], to first order."""
        f, index = self.fitted, torch.as_tensor(index, device=self.fitted.w.device)
        b = self._own(index) / max(1, f.n - len(index))
        return self.solved(b)

    def on_score(self, gradient: Tensor) -> tuple[Tensor, float]:
        """What the presence of each sample adds to a score [n], and the residual of the solve, from the score's
        ``gradient`` [p] at w: the score as trained minus the score without the sample.
        """
        f = self.fitted
        z, residual = self.solved(gradient, transposed=True)
        moved = f.along(self._at, z) - f.gradient(self._at) @ z
        if self.form == "total" and f.rho:
            moved = moved + f.along(f.w, f.turned(f.curved(f.ascended, z)))
        return -moved / (f.n - 1), residual

    @property
    def _at(self) -> Tensor:
        return self.fitted.w if self.form == "plain" else self.fitted.ascended

    def _own(self, index: Tensor) -> Tensor:
        """The sum of b_k [p] over some samples."""
        f = self.fitted
        b = f.each_gradient(self._at, index).sum(0) - len(index) * f.gradient(self._at)
        if self.form == "total" and f.rho:
            b = b + f.curved(f.ascended, f.turned(f.each_gradient(f.w, index).sum(0)))
        return b

    def solved(self, b: Tensor, transposed: bool = False) -> Solved:
        """x of J x = ``b`` [p], or of J^T x = b."""
        if len(b) <= self.exact:
            J = self.written_out.T if transposed else self.written_out
            x = torch.linalg.solve(J, b)
            return Solved(x, float((b - J @ x).norm() / b.norm().clamp_min(SMALLEST)))
        return gmres(self._transposed if transposed else self.times, b, self.tolerance, self.steps)

    def times(self, v: Tensor) -> Tensor:
        """J v [p]."""
        f, lam = self.fitted, self.fitted.decay + self.damping
        inner = v + f.turned(f.curved(f.w, v)) if self.form == "total" and f.rho else v
        return f.curved(self._at, inner) + lam * v

    def _transposed(self, v: Tensor) -> Tensor:
        """J^T v [p]."""
        f, lam = self.fitted, self.fitted.decay + self.damping
        out = f.curved(self._at, v)
        if self.form == "total" and f.rho:
            out = out + f.curved(f.w, f.turned(out))
        return out + lam * v

    @cached_property
    def written_out(self) -> Tensor:
        """J [p, p]."""
        f = self.fitted
        J = f.hessian(self._at)
        one = torch.eye(len(J), dtype=J.dtype, device=J.device)
        if self.form == "total" and f.rho:
            J = J @ (one + torch.stack([f.turned(column) for column in f.hessian(f.w).T], 1))
        return J + (f.decay + self.damping) * one


class Moment(NamedTuple):
    """Weights ``w`` [p] during training, and ``rate``, the sum of the learning rates of the steps that they stand
    for.
    """

    w: Tensor
    rate: float


def trajectory(fitted: Trained, checkpoints: Sequence[Moment], gradient: Callable[[Tensor], Tensor]) -> Tensor:
    """What each sample's steps of descent added to a score [n], from the score's ``gradient`` [p] at given weights;
    each checkpoint has the ascent of its own weights, held fixed.
    """
    out = fitted.w.new_zeros(fitted.n)
    for w, rate in checkpoints:
        here = Trained(w, fitted.losses, fitted.n, fitted.decay, fitted.rho, fitted.rows)
        out -= rate / fitted.n * here.along(here.ascended, gradient(w))
    return out


def gmres(times: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, steps: int, restart: int = 200) -> Solved:
    """x [p] of A x = b by restarted GMRES (Saad and Schultz 1986), A given by what it makes of a vector; at most
    ``steps`` products, those that begin a cycle aside.
    """
    x, size, left = torch.zeros_like(b), float(b.norm()), steps
    residual = 1.0
    if size == 0:
        return Solved(x, 0.0)
    while left > 0 and residual > tolerance:
        x, done = _cycle(times, b, x, tolerance * size, min(restart, left))
        left -= done
        residual = float((b - times(x)).norm()) / size
        if done == 0 or not math.isfinite(residual):
            break
    return Solved(x, residual)


def _cycle(times: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, enough: float, width: int) -> tuple[Tensor, int]:
    """``x`` after at most ``width`` steps of Arnoldi's iteration, and how many were taken."""
    r = b - times(x) if x.any() else b
    beta = r.norm()
    basis, H = [r / beta.clamp_min(SMALLEST)], b.new_zeros(width + 1, width)
    y = b.new_zeros(0)
    for j in range(width):
        v = times(basis[j])
        for _ in range(2):  # once more, against what rounding leaves
            for i, q in enumerate(basis):
                share = q @ v
                H[i, j] += share
                v = v - share * q
        H[j + 1, j] = v.norm()
        invariant = float(H[j + 1, j]) <= 1e-13 * float(H[:, j].norm())
        if (j + 1) % LOOKED_EVERY and j + 1 < width and not invariant:
            basis.append(v / H[j + 1, j])
            continue
        goal = b.new_zeros(j + 2)
        goal[0] = beta
        small = H[: j + 2, : j + 1]
        y = torch.linalg.lstsq(small, goal[:, None], driver="gelsd" if b.device.type == "cpu" else None).solution[:, 0]
        if float((goal - small @ y).norm()) <= enough or invariant:
            break
        basis.append(v / H[j + 1, j])
    return x + torch.stack(basis[: len(y)], 1) @ y, len(y)
