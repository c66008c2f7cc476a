"""Steering in a linear subspace: the map that MoReS (and LoReFT) add to a state."""

from __future__ import annotations

import torch
from torch import Tensor


def orthonormal(A: Tensor) -> Tensor:
    """The r orthonormal rows [r, D] that span the rows of ``A`` [r, D], r <= D: those of Gram and Schmidt.

    They do not depend on the length of A's rows, so weight decay on A leaves them alone. By Cholesky factors of the r x
    r Gram matrix, twice for accuracy: nothing of size D x D, and no wait for the device.
    """
    R = A / A.norm(dim=-1, keepdim=True)
    for _ in range(2):
        L = torch.linalg.cholesky_ex(R @ R.T).L
        R = torch.linalg.solve_triangular(L, R, upper=False)
    return R


def steered_by(h: Tensor, R: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """MoReS(h) = W_up (Linear(h) - W_down h) (equations 3 and 4) with W_up = Rᵀ, W_down = R, Linear(h) = W h + b.

    h [n, D]; R, W [r, D]; b [r]; returns [n, D].
    """
    return (h @ (W - R).T + b) @ R
