"""Normalised signed structural divergence (Instruction Anchor, eq. 4; SPEC section 5)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

KL = Literal["before_after", "after_before"]


def nssd(before: Tensor, after: Tensor, complies: Tensor, kl: KL = "before_after") -> Tensor:
    """I_NSSD [...] = sign(P~'(E_C) - P~(E_C)) * KL, from log P~ and log P~' [..., K] over E_C and E_X; ``complies``
    [..., K] is E_C.

    ``kl``: KL(P~ || P~') or KL(P~' || P~); the copy of the paper at hand has lost the direction. Entries of -inf are
    none.
    """
    p, q = (before, after) if kl == "before_after" else (after, before)
    divergence = (p.exp() * (p - q)).masked_fill(p.isneginf(), 0.0).sum(-1).clamp_min(0.0)
    return (mass(after, complies) - mass(before, complies)).sign() * divergence


def mass(log_p: Tensor, complies: Tensor) -> Tensor:
    """P~(E_C) [...]."""
    return log_p.exp().masked_fill(~complies, 0.0).sum(-1)
