"""Plain influence by dattri (TRAIS-Lab, MIT), an extra, to stand beside ours: its solvers of H z = s'. And its linear
datamodelling score (Park et al., ICML 2023, arXiv 2303.14186, definition 2.3).

It knows no ascent (SAM) and no trajectory with a score of a model's own, and its conjugate gradients take a fixed
number of steps, without a look at what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from factory.extras import not_installed
from factory.statistics.association import Interval, bootstrap, interval
from factory.train.influence import Trained

Solver = Literal["explicit", "cg"]
RESAMPLED = 200  # draws of subsets for an interval


def missing() -> str | None:
    """What dattri needs, or None."""
    return not_installed("influence by dattri", "influence", ["dattri"])


def by_dattri(solver: Solver, fitted: Trained, damping: float, gradient: Tensor, steps: int) -> tuple[Tensor, float]:
    """What each sample's presence adds to a score [n] by the plain form, from the score's ``gradient`` [p] at w, and
    ||s' - (H + lam) z|| / ||s'||, which dattri does not tell; ``steps`` of conjugate gradients.
    """
    from dattri.func.hessian import ihvp_cg, ihvp_explicit

    f, lam = fitted, fitted.decay + damping
    every = torch.arange(f.n, device=f.w.device)
    mean: Callable[[Tensor], Tensor] = lambda w: f.losses(w, every).mean()
    options = {"max_iter": min(steps, len(f.w))} if solver == "cg" else {}
    inverse = {"explicit": ihvp_explicit, "cg": ihvp_cg}[solver](mean, regularization=lam, **options)
    z = inverse((f.w.detach(),), gradient[None])[0].detach()
    left = gradient - f.curved(f.w, z) - lam * z
    adds = -(f.along(f.w, z) - f.gradient(f.w) @ z) / (f.n - 1)
    return adds, float(left.norm() / gradient.norm().clamp_min(1e-30))


def linear_score(told: Tensor, scores: Tensor, kept: Tensor) -> tuple[float, Interval | None]:
    """How the sum of what the prompts of a subset add, by ``told`` [n], ranks with the score after training on that
    subset alone, and its 95 % interval over subsets, with ``scores`` [S], that ``kept`` [S, m] of the n prompts.
    """
    from dattri.metric import lds

    def of(rows: np.ndarray) -> float:
        return float(lds(told[:, None], (scores[rows, None], kept[rows]))[0])

    return of(np.arange(len(scores))), interval(bootstrap(of, range(len(scores)), RESAMPLED))
