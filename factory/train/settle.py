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
        """-(J + damping)^-1 F [p] ``here``; what is found of J is kept."""
        F = here.field
        own = Influence(here, "total", damping, self.exact, tolerance=1e-3)
        self._inverse = None
        if len(F) <= own.exact:
            if not damping:
                self._inverse = torch.linalg.inv(own.written_out), torch.eye(len(F)).to(F)
            return torch.linalg.solve(own.written_out, -F)

        def times(v: Tensor) -> Tensor:
            product = own.times(v)
            self.products.append((v, product - damping * v))
            return product

        return gmres(times, -F, own.tolerance, own.steps).x

    def steps(self, here: Trained, newton: bool) -> Iterator[Tensor]:
        """Steps [p] toward where training ends, the cheapest first; none unless ``newton``'s may be taken."""
        if newton and (known := self.remembered(here.field)) is not None:
            yield known
        if newton:
            yield self.newton(here)

    def remembered(self, F: Tensor) -> Tensor | None:
        """-J^-1 F [p] by the products that are known, as far as they reach; None without any."""
        if self._inverse is None and self.products:
            V, JV = (torch.stack(each, 1) for each in zip(*self.products, strict=True))
            self._inverse = torch.linalg.pinv(JV, rtol=1e-6), V
        return None if self._inverse is None else -self._inverse[1] @ (self._inverse[0] @ F)


def settled(trained: Trained, tolerance: float = 1e-6, steps: int = 40, terrain: Terrain | None = None) -> Solved:
    """The weights [p] near ``trained.w`` where its training ends, and the length that is left there of g(w + eps) + lam
    w, relative to a sample's gradient.

    A step is that of the ``terrain``'s known products (Newton's with a J of nearby weights), or else Newton's own,
    where it halves that length; else one that is damped in proportion to it, which follows the descent
    (pseudo-transient continuation, Kelley and Keyes 1998). They end at ``tolerance``. Weights that begin close to a
    saddle stay there.
    """
    terrain = terrain or Terrain(trained)
    here, newton = trained, True
    for _ in range(steps):
        if (size := float(here.field.norm())) <= tolerance * terrain.sample:
            break
        tried = (here.at(here.w + step) for step in terrain.steps(here, newton))
        closer = next((there for there in tried if float(there.field.norm()) < size / 2), None)
        if closer is None:
            closer = here.at(here.w + terrain.newton(here, terrain.stiff * size / terrain.sample))
            newton = float(closer.field.norm()) < size
        here = closer
    return Solved(here.w, float(here.field.norm()) / terrain.sample)
