"""The control of every steering table: a random direction as long as the mean difference (ours).

    r = |v| z / |z|,   v = E[h_[I,T,P+] - h_[I,T,P-]],   z ~ N(0, I)

What a method gains over it is gained by its direction; what it does not, any push of that size would give.
"""

from typing import Literal

import torch
from torch import Tensor

from factory.registry import register
from factory.steer import Context, States, Steerer


@register("steering", "random_vector")
class RandomVector(Steerer):
    """A random vector of the norm of ``static``'s, one a seed and direction, added alike to every input."""

    @property
    def control(self) -> Literal["", "plugin", "all"]:
        return "all"

    def fit(self, states: States) -> dict[str, Tensor]:
        v = (states.toward - states.away).mean(0)
        generator = torch.Generator().manual_seed(2 * states.seed + (not states.toward_first))
        z = torch.randn(v.shape, generator=generator)
        return {"r": z * (v.norm() / z.norm())}

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        return state["r"].expand_as(h)
