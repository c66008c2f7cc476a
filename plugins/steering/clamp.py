"""Clamping one direction of the residual stream (the action `clamp` of lm-eval's steered models)."""

import torch
from torch import Tensor

from factory.registry import register
from factory.steer import Context, States, Steerer


@register("steering", "clamp")
class Clamp(Steerer):
    """Each token's component along u = v/|v|, v = E[h_[I,T,P+] - h_[I,T,P-]], is moved to its mean E[h_[I,T,P+]·u]
    under the instruction.

    At strength 1 h becomes h + (c - (h - b)·u) u; ``b`` is zero here and may be a sparse autoencoder's bias in an
    imported file. What the target is, papers leave open: the mean of the instructed states is our choice.
    """

    reads = "per_token"

    def fit(self, states: States) -> dict[str, Tensor]:
        u = torch.nn.functional.normalize((states.toward - states.away).mean(0), dim=0)
        return {"u": u, "c": (states.toward @ u).mean(), "b": torch.zeros_like(u)}

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        u, c, b = state["u"], state["c"], state["b"]
        return (c - (h - b) @ u)[:, None] * u
