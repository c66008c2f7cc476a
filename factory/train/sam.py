"""Sharpness-aware minimisation (Foret et al., ICLR 2021, arXiv 2010.01412): a step's gradient is that of the weights
which an ascent of length rho reaches.

    eps(w) = rho g(w) / ||g(w)||            (equation 2, p = 2)
    w <- w - eta g(w + eps(w))              (equation 3; eta and its preconditioning are the base optimiser's)

Sharpness is L(w + eps(w)) - L(w).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def ascended(parameters: Iterable[Tensor], rho: float) -> Iterator[None]:
    """Inside, ``parameters`` that have a gradient g(w) stand at w + eps(w), with no gradient yet; afterwards they are w
    again, bit for bit, and keep the gradients that were taken there. Where g(w) is 0, eps is 0.
    """
    moved = [p for p in parameters if p.grad is not None]
    before = [p.detach().clone() for p in moved]
    with torch.no_grad():
        gradients = [p.grad for p in moved if p.grad is not None]
        norm = torch.stack([g.float().norm() for g in gradients]).norm() if gradients else torch.zeros(())
        for p, g in zip(moved, gradients, strict=True):
            p.add_(g * (rho / norm.clamp_min(torch.finfo(torch.float32).tiny)).to(g.device))
            p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for p, w in zip(moved, before, strict=True):
                p.copy_(w)


RandomState = tuple[Tensor, list[Tensor]]


def random_state() -> RandomState:
    """Where torch's random numbers are, on the CPU and on every GPU in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


@contextmanager
def drawing_again(state: RandomState) -> Iterator[None]:
    """Inside, random numbers are drawn from ``state`` on, so that a second pass drops what the first one dropped;
    afterwards they go on as if nothing had been drawn.
    """
    now = random_state()
    _draw_from(state)
    try:
        yield
    finally:
        _draw_from(now)


def _draw_from(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
