"""The control of every steering method: its own vectors, each turned into a random direction and as long as it was.

    r = |v| R v / |R v|,    R [d, d] of independent normal numbers

R v is as likely to point one way as another. What a method gains over r it gains by its directions; what it does not,
any push of that size would give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from factory.registry import Params
from factory.steer.around import ActsLike
from factory.steer.base import Context, Steerer, Tensors

TURN = "turned.R"


class Turned(ActsLike):
    """``inner``, with its vectors turned; it acts where ``inner`` does, and as strongly. ``told``: the gain that
    ``inner`` decides on by looking ahead is given with the strength.
    """

    def __init__(self, inner: Steerer, told: bool = False) -> None:
        super().__init__(Params())
        self.inner, self.reads, self.told = inner, inner.reads, told

    def delta(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        v, d = self.inner.delta(h, state, ctx), h.shape[-1]
        turned = v @ state[TURN][:d, :d].to(v.dtype).T
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        return turned * (length / torch.linalg.vector_norm(turned, dim=-1, keepdim=True).clamp_min(1e-20))

    def gain(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        return super().gain(h, state, ctx) if self.told else self.inner.gain(h, state, ctx)


def turn(width: int, seed: int) -> Tensors:
    """What ``Turned`` needs beside the state of a method that acts on ``width`` numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {TURN: torch.randn(width, width, generator=generator) * width**-0.5}
