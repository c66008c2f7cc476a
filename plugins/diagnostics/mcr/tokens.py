"""Which tokens are the image's, which are text's, and how far their cache entries spread (SPEC A8, A10, A11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factory.data.prompt import USER_TEXT, Role
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.errors import UserError
from factory.model.prefix import Prefix, last_index

TEXT = {
    "user": USER_TEXT,
    "context_only": (Role.CONTEXT,),
    "all_non_image": tuple(role for role in Role if role not in (Role.PAD, Role.IMAGE)),
}


def token_ranges(prefix: Prefix, text_tokens: str, sources: Sources = PICTURE_AND_TEXT) -> Tensor:
    """R [2, S, T]: booleans of the image tokens R[V] and the text tokens R[T] of a prefix; between two texts of the
    tokens of either, R[A] and R[B], whatever ``text_tokens`` says: the question is neither's.
    """
    both = ((sources.first.role,), TEXT[text_tokens] if sources.pictured else (sources.second.role,))
    roles = [torch.tensor([int(role) for role in m], device=prefix.roles.device) for m in both]
    return torch.stack([torch.isin(prefix.roles, m) & prefix.mask.bool() for m in roles])


def question_suffix(whole: Prefix, keys: Sequence[str]) -> Tensor:
    """[R, T] booleans: each prompt from its last question on. Raises UserError where that is impossible."""
    question = whole.roles == Role.QUESTION
    starts = question & ~torch.nn.functional.pad(question, (1, 0))[:, :-1]
    columns = torch.arange(question.shape[1], device=question.device)
    suffix = (columns >= last_index(starts)[:, None]) & whole.mask.bool()
    late = (suffix & (whole.roles == Role.IMAGE)).any(-1)
    for key, has_question, has_image in zip(keys, question.any(-1).tolist(), late.tolist(), strict=True):
        if not has_question or has_image:
            why = "an image after its last question" if has_question else "no question"
            raise UserError(
                f"mcr: query_tokens: question_suffix: the prompt of '{key}' has {why}; use query_tokens: last"
            )
    return suffix


def spread(prefix: Prefix, R: Tensor, scope: str, shared: bool) -> Tensor:
    """Standard deviation [layers, 2 (K, V), 2 (m), S] of the cache over the tokens of ``scope``; float64, on the
    CPU.
    """
    over = prefix.mask.bool().expand_as(R) if scope != "layer_slice" else R.any(0).expand_as(R) if shared else R
    over = over.double().cpu()
    moments = torch.stack(
        [torch.stack([_moments(x, over) for x in (layer.keys, layer.values)]) for layer in prefix.cache.layers]
    )
    if scope == "global":
        moments = moments.sum((0, 1), keepdim=True).expand_as(moments)
    n, total, squares = moments.unbind(2)
    return ((squares - total**2 / n) / (n - 1)).sqrt()


def _moments(x: Tensor, over: Tensor) -> Tensor:
    """Count, sum and sum of squares [3, 2, S] of keys or values [S, heads, T, d] over tokens [2, S, T]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    sums = x.sum(-1, dtype=dtype).sum(1).cpu()
    squares = torch.linalg.vector_norm(x, dim=-1, dtype=dtype).square().sum(1).cpu()
    each = torch.stack([torch.full_like(sums, x.shape[1] * x.shape[3]), sums, squares]).double()
    return torch.einsum("mst,kst->kms", over[..., -x.shape[2] :], each)
