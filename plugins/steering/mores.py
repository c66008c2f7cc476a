"""MoReS at inference: h' = h + Rᵀ(W h + b - R h), each token by its own state (LLaVA Steering, arXiv 2412.12359; SPEC
6). Trained by the tuner of the same name.

Without training, ``fit`` (ours) takes R from the main directions of h_[I,T,P+] - h_[I,T,P-] and W h + b - R h as the
ridge regression of R (h_[I,T,P+] - h_[I,T,P-]) on h_[I,T].
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from factory.registry import Params, register
from factory.steer import Context, States, Steerer
from factory.steer.subspace import steered_by


class MoReSSteeringParams(Params):
    """``ridge`` is the regression's penalty as a share of the states' mean variance.

    ``rank`` r of the subspace.
    """

    rank: PositiveInt = 1
    ridge: Annotated[float, Field(gt=0)] = 1.0


@register("steering", "mores")
class MoReSSteering(Steerer):
    """Linear steering of each token in a subspace."""

    Params = MoReSSteeringParams
    reads = "per_token"

    def fit(self, states: States) -> dict[str, Tensor]:
        V = states.toward - states.away
        R = torch.linalg.svd(V, full_matrices=False).Vh[: self.params.rank]
        h, u = states.base - states.base.mean(0), V @ R.T
        K = h @ h.T  # the dual form: n x n, however wide the model is
        M = torch.linalg.solve(K + self.params.ridge * K.diagonal().mean() * torch.eye(len(K)), u - u.mean(0)).T @ h
        return {"R": R, "W": M + R, "b": u.mean(0) - M @ states.base.mean(0)}

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        return steered_by(h.float(), state["R"], state["W"], state["b"])
