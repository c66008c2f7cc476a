"""Read-outs of hidden states at chosen tokens and chosen vocabulary columns (Instruction Anchor, eq. 1 and 5).

Nothing here touches the whole vocabulary: only the columns of an answer dictionary are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from factory.model.view import ModelView
from factory.model.weights import weight_of

Pool = Literal["max", "mean"]


def columns(view: ModelView, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows W_U[ids] [B, K, d] and biases [B, K] of the unembedding, in float32 at least; an id of -1 gets a bias of
    -inf.
    """
    known = ids.clamp_min(0)
    with weight_of(view.unembed) as W_U, weight_of(view.unembed, "bias") as b:
        weight = widened(W_U[known.to(W_U.device)]).to(ids.device)
        bias = weight.new_zeros(ids.shape) if b is None else widened(b[known.to(b.device)]).to(ids.device)
    return weight, bias.masked_fill(ids < 0, -torch.inf)


def widened(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dictionary_logits(view: ModelView, normed: Tensor, ids: Tensor) -> Tensor:
    """Logits [B, ..., K] of normed states [B, ..., d] at ids [B, K]; -inf where an id is -1."""
    weight, bias = columns(view, ids)
    flat = widened(normed.to(ids.device)).flatten(1, -2)
    return (flat @ weight.mT + bias[:, None]).unflatten(1, normed.shape[1:-1])


def belief(view: ModelView, h: Tensor, ids: Tensor, pool: Pool = "max") -> Tensor:
    """z_S (eq. 1) [B, ...]: the logit lens of raw states ``h`` [B, ..., d], pooled over the columns of S, ``ids`` [B,
    K].

    ``pool``: the maximum over the forms, or their mean (app. E.1).
    """
    logits = dictionary_logits(view, view.norm(h), ids)
    if pool == "max":
        return logits.amax(-1)
    known = (ids >= 0).view(len(ids), *[1] * (logits.ndim - 2), -1)
    return logits.masked_fill(~known, 0.0).sum(-1) / known.sum(-1)


def intensity(z: Tensor, mask: Tensor, k: int) -> Tensor:
    """f_S (eq. 5) [B, ...]: the mean of the ``k`` largest z [B, ..., n] over a prompt's tokens, ``mask`` [B, n]; NaN
    where it has none.
    """
    mask = mask.view(len(mask), *[1] * (z.ndim - 2), -1)
    k = min(k, z.shape[-1])
    top = z.masked_fill(~mask, -torch.inf).topk(k, -1).values
    kept = torch.arange(k, device=z.device) < mask.sum(-1, keepdim=True)
    return top.masked_fill(~kept, 0.0).sum(-1) / kept.sum(-1)


def restricted(comply: Tensor, compete: Tensor) -> Tensor:
    """log P~ [..., K]: the distribution over E_C and E_X alone, from logits of either (-inf: not an entry)."""
    return F.log_softmax(torch.cat([comply, compete], -1), -1)


def restricted_logits(view: ModelView, hidden: Tensor, comply: Tensor, compete: Tensor) -> Tensor:
    """log P~ [B, ..., K] of final normed states [B, ..., d]."""
    return restricted(*(dictionary_logits(view, hidden, ids) for ids in (comply, compete)))


@dataclass(frozen=True)
class Readout:
    """f_C and f_X (eq. 5) of states at instruction tokens: which of them ``mask`` [B, n], entries ``comply`` and
    ``compete`` [B, K].
    """

    view: ModelView
    mask: Tensor
    comply: Tensor
    compete: Tensor
    k: int
    pool: Pool = "max"

    def __call__(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """f_C, f_X [B, ...] of states [B, ..., n, d]."""
        f_C, f_X = (
            intensity(belief(self.view, h, ids, self.pool), self.mask, self.k) for ids in (self.comply, self.compete)
        )
        return f_C, f_X

    def margin(self, h: Tensor) -> Tensor:
        """M = f_C - f_X [B, ...]."""
        comply, compete = self(h)
        return comply - compete
