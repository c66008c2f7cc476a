"""Where training ends: weights at which g(w + eps) + lam w is 0, for several trainings on nearly the same losses."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from factory.train.influence import SMALLEST, Influence, Solved, Trained, gmres

STIFF = 4.0  # damping in units of the largest curvature, by the field's length relative to a sample's gradient
REMEMBERED = 200  # products with J that a terrain keeps
NEAR = 0.1  # of a sample's gradient: a field below it is near enough for Newton's step
FORCED, FOLLOWED = 0.1, 1e-3  # what Newton's equation may be left with, of what was left before; a damped one
HISTORY, LOOKS = 50, 60  # of L-BFGS: steps that it remembers, and gradients that it takes before Newton's step is tried


class Terrain:
    """What trainings on nearly the losses of ``of`` share, so that each next one ends in fewer products: the length of
    a sample's gradient, the largest curvature, and vectors v with their J v from nearby weights. J is written out up
    to ``exact`` weights.
    """

    def __init__(self, of: Trained, exact: int = 1000) -> None:
        self.of, self.exact = of, exact
        self.products: deque[tuple[Tensor, Tensor]] = deque(maxlen=REMEMBERED)
        self._inverse: tuple[Tensor, Tensor] | None = None

    @cached_property
    def sample(self) -> float:
        return max(self.of.standing.sample, SMALLEST)

    @cached_property
    def stiff(self) -> float:
        return STIFF * self.of.steepest

    def newton(self, here: Trained, damping: float = 0.0) -> Tensor:
        """-(J + damping)^-1 F [p] ``here``; what is found of J is kept. Beyond ``exact`` weights it goes on from what
        the known products give.
        """
        F = here.field
        own = Influence(here, "total", damping, self.exact, tolerance=FOLLOWED if damping else FORCED)
        if self.written_out:
            self._inverse = None
            if not damping:
                self._inverse = torch.linalg.inv(own.written_out), torch.eye(len(F)).to(F)
            return torch.linalg.solve(own.written_out, -F)

        def times(v: Tensor) -> Tensor:
            product = own.times(v)
            self.products.append((v, product - damping * v))
            return product

        known = self.remembered(F)
        begun = torch.zeros_like(F) if known is None or damping else known
        rest = -F - times(begun) if begun.any() else -F
        step = begun + gmres(times, rest, own.tolerance, own.steps).x
        self._inverse = None
        return step

    def steps(self, here: Trained, newton: bool) -> Iterator[Tensor]:
        """Steps [p] toward where training ends, the cheapest first; none of Newton's own unless ``newton``."""
        if (known := self.remembered(here.field)) is not None:
            yield known
        if newton:
            yield self.newton(here)

    def onward(self, here: Trained) -> tuple[Trained, bool]:
        """Weights that are nearer to where training ends from far away, and whether Newton's step is to be tried there.
        Without an ascent that is a minimum, and the way is down, until it comes no nearer; with one, and where Newton's
        step is cheap, steps are damped in proportion to the field's length, which follows the descent (pseudo-transient
        continuation, Kelley and Keyes 1998).
        """
        size = float(here.field.norm())
        if here.rho or self.written_out:
            there = here.at(here.w + self.newton(here, self.stiff * size / self.sample))
            return there, float(there.field.norm()) < size
        there = descended(here)
        return there, float(there.field.norm()) > size / 2

    def begins(self, here: Trained) -> bool:
        """Whether Newton's step is to be tried first: where it is cheap, where there is no way down, and near the
        end.
        """
        return self.written_out or bool(here.rho) or float(here.field.norm()) < NEAR * self.sample

    @property
    def written_out(self) -> bool:
        return len(self.of.w) <= self.exact

    def remembered(self, F: Tensor) -> Tensor | None:
        """-J^-1 F [p] by the products that are known, as far as they reach; None without any."""
        if self._inverse is None and self.products:
            V, JV = (torch.stack(each, 1) for each in zip(*self.products, strict=True))
            self._inverse = torch.linalg.pinv(JV, rtol=1e-6), V
        return None if self._inverse is None else -self._inverse[1] @ (self._inverse[0] @ F)


def descended(here: Trained, looks: int = LOOKS) -> Trained:
    """Weights further down the mean loss with its decay, by L-BFGS with a line search (Liu and Nocedal 1989) over about
    ``looks`` gradients; of a training without an ascent.
    """
    w = here.w.clone().requires_grad_()
    search = torch.optim.LBFGS([w], 1.0, looks, looks, 0.0, 0.0, HISTORY, "strong_wolfe")

    def look() -> Tensor:
        value, g = here.descent(w)
        w.grad = g + here.decay * w.detach()
        return value + here.decay / 2 * (w.detach() @ w.detach())

    search.step(look)
    return here.at(w.detach())


def settled(trained: Trained, tolerance: float = 1e-6, steps: int = 40, terrain: Terrain | None = None) -> Solved:
    """The weights [p] near ``trained.w`` where its training ends, and the length that is left there of g(w + eps) + lam
    w, relative to a sample's gradient.

    A step is that of the ``terrain``'s known products (Newton's with a J of nearby weights), or else Newton's own,
    where it halves that length; else one that goes ``onward``. They end at ``tolerance``. Weights that begin close to a
    saddle stay there.
    """
    terrain = terrain or Terrain(trained)
    here, newton = trained, terrain.begins(trained)
    for _ in range(steps):
        if (size := float(here.field.norm())) <= tolerance * terrain.sample:
            break
        tried = (here.at(here.w + step) for step in terrain.steps(here, newton))
        closer = next((there for there in tried if float(there.field.norm()) < size / 2), None)
        if closer is None:
            closer, newton = terrain.onward(here)
        here = closer
    return Solved(here.w, float(here.field.norm()) / terrain.sample)
