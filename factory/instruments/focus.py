"""Attention weights, and how they lie on a set of tokens: the quantities of D-LEAF (arXiv 2509.07864) in our
reconstruction (SPEC.md 7.3).

The paper's formulas are in no public source. IAF follows PAI, as reviewers say it does: a head's attention mass on the
image tokens. LIAE is the entropy of the heads' mean attention over those tokens, renormalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.diagnose import Query, attention
from factory.errors import UserError
from factory.model.encode import Batch
from factory.model.prefix import Prefix, extend, last_index, prefill
from factory.model.view import ModelView


def visible(module: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """What each query sees [R or 1, 1, t, T], as the plain attention takes a missing mask."""
    if mask is not None:
        return mask[..., : k.shape[2]]
    t, T = q.shape[2], k.shape[2]
    seen = torch.ones(1, 1, t, T, dtype=torch.bool, device=q.device)
    return seen.tril(T - t) if getattr(module, "is_causal", True) and t > 1 else seen


def weights(q: Tensor, k: Tensor, seen: Tensor, options: Mapping[str, Any]) -> Tensor:
    """A = softmax(q k^T) [R, heads, t, T] in float32, from q [R, heads, t, d], k [R, kv_heads, T, d] and what is
    ``seen``.

    ``options`` are those of the attention call. Raises UserError for attention that is more than this softmax.
    """
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise UserError(
            "this model's attention has a soft cap or sinks: its weights are not the plain softmax that this method"
            " reads and edits"
        )
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q.float() @ k.float().mT * options["scaling"]
    return scores.masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)


def applied(A: Tensor, v: Tensor) -> Tensor:
    """Attention's output [R, t, heads, d] for weights A [R, heads, t, T] and values v [R, kv_heads, T, d]."""
    return (A.to(v.dtype) @ v.repeat_interleave(A.shape[1] // v.shape[1], 1)).transpose(1, 2)


def iaf(A: Tensor, on: Tensor) -> Tensor:
    """IAF_h = sum_{j in on} A_h[j]: the attention mass [R, heads] of A [R, heads, T] on tokens ``on`` [R, T]."""
    return (A * on[:, None]).sum(-1)


def liae(A: Tensor, on: Tensor) -> Tensor:
    """LIAE = -sum_j abar_j log abar_j [R], abar the heads' mean of A [R, heads, T] on the tokens ``on`` [R, T], summing
    to 1; NaN without any.
    """
    abar = (A * on[:, None]).mean(1)
    abar = abar / abar.sum(-1, keepdim=True)
    return torch.where(on.any(-1), -torch.xlogy(abar, abar).sum(-1), torch.nan)


Measure = Callable[[Tensor, Tensor], Tensor]
"""``measure(A [R, heads, T], on [R, T])``: what one query's attention says of the tokens ``on``."""


@torch.no_grad()
def by_layer(view: ModelView, prefix: Prefix, query: Query, on: Tensor, measure: Measure) -> list[Tensor]:
    """``measure(A, on)`` of each row's last query token in every layer; ``on`` [R, T] marks tokens of prefix and query;
    on the CPU.
    """
    with _looking(view, last_index(query.mask), on, measure) as found:
        extend(view, prefix.fork(), *query)
    return [found[layer] for layer in sorted(found)]


@torch.no_grad()
def of_prompts(view: ModelView, batch: Batch, on: Tensor, measure: Measure) -> list[Tensor]:
    """``by_layer`` of whole prompts, their last tokens looking. What steers the model steers here too."""
    with _looking(view, last_index(batch.attention_mask), on, measure) as found:
        prefill(view, batch)
    return [found[layer] for layer in sorted(found)]


@contextmanager
def _looking(view: ModelView, at: Tensor, on: Tensor, measure: Measure) -> Iterator[dict[int, Tensor]]:
    """What is run inside is measured: by layer, the query in column ``at`` [R] of each row. What a controller runs by
    itself, to look ahead, is not.
    """
    found: dict[int, Tensor] = {}

    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if not view.steps.here.resting:
            rows, last, seen = torch.arange(len(q), device=q.device), at.to(q.device), visible(module, q, k, mask)
            seen = seen.expand(len(q), -1, q.shape[2], -1)[rows, :, last][:, :, None]
            A = weights(q[rows, :, last][:, :, None], k, seen, options)[:, :, 0]
            assert isinstance(module.layer_idx, int), "transformers numbers its attention modules"
            found[module.layer_idx] = measure(A, on.to(q.device)).cpu()
        return sdpa_attention_forward(module, q, k, v, mask, **options)

    with attention(view, attend):
        yield found
