"""Branches: many variants of the end of a prompt as one forward over one shared KV cache.

The variants of a prompt stand behind each other in one query sequence; a mask lets each see the prompt before it and
itself alone, so the cache is never copied, whatever their number. Edges of the attention graph are cut by the same
mask: it works under SDPA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.data.prompt import Role
from factory.diagnose import attention
from factory.errors import UserError
from factory.instruments.residual import TOLERANCE
from factory.model.encode import Batch
from factory.model.prefix import Prefix, fork_cache, prefill
from factory.model.replay import Call, recorded
from factory.model.view import ModelView


@dataclass(frozen=True)
class Stem:
    """Prompts run once: final normed states ``hidden`` and the decoder's input ``embeds`` [B, T, d], images in
    place.
    """

    batch: Batch
    hidden: Tensor
    embeds: Tensor
    prefix: Prefix


@dataclass(frozen=True)
class Cuts:
    """Which edges each of n variants loses: those from ``source`` to ``target`` [P, B, T] of its ``pathway`` [n] in the
    layers where it is ``active`` [layers, n] (Instruction Anchor, eq. 3). A token never loses sight of itself."""

    target: Tensor
    source: Tensor
    pathway: Tensor
    active: Tensor

    def pick(self, variants: slice) -> Cuts:
        return Cuts(self.target, self.source, self.pathway[variants], self.active[:, variants])


@dataclass(frozen=True)
class Tail:
    """The end of each prompt that is run again: its columns ``at`` [B, t], ``mask`` [B, t] (False fills up), ``before``
    [B, T].
    """

    at: Tensor
    mask: Tensor
    before: Tensor

    @property
    def own(self) -> Tensor:
        """[B, t, t] booleans: what tail tokens see of the tail."""
        t = self.at.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool, device=self.at.device).tril()
        return causal & self.mask[:, None, :] | torch.eye(t, dtype=torch.bool, device=self.at.device)


@torch.no_grad()
def run_stem(view: ModelView, batch: Batch) -> Stem:
    """Prefill, keeping what the decoder was given. Raises ``UserError`` for a prompt beyond a sliding window, and for a
    model whose prompt tokens see what follows them."""
    view.need_columns("its attention cannot be cut by role over a shared prefix")
    calls: list[Call] = []
    with recorded(view, calls):
        hidden, prefix = prefill(view, batch)
    if view.family.bidirectional_prompt:
        raise UserError(
            f"in {type(view.decoder).__name__} prompt tokens see what follows them: its attention cannot be cut by role"
            " over a shared prefix"
        )
    view.family.attention_mask(view.decoder, prefix.mask, 1)
    given = calls[0].get("inputs_embeds")  # where no images stand between the words, the decoder is given their ids
    return Stem(batch, hidden, view.model.get_input_embeddings()(batch.input_ids) if given is None else given, prefix)


def tail_of(view: ModelView, stem: Stem, first: Tensor) -> Tail:
    """The tail that begins at column ``first`` [B] of each prompt. Raises ``UserError`` where it has image tokens and
    the model cannot run these again from what its decoder was given."""
    valid = stem.batch.attention_mask.bool()
    queried = valid & (torch.arange(valid.shape[1], device=valid.device) >= first[:, None])
    width = int(queried.sum(-1).max())
    at = (~queried).long().argsort(dim=-1, stable=True)[:, :width]
    tail = Tail(at, queried.gather(-1, at), valid & ~queried)
    if bool((queried & stem.batch.mask(Role.IMAGE)).any()):
        _check_images(view, stem, tail)
    return tail


def _check_images(view: ModelView, stem: Stem, tail: Tail) -> None:
    """An image's tokens may see each other both ways, or be given more between blocks: uncut, the tail must end as in
    the prefill.
    """
    nothing = torch.zeros(1, *stem.batch.input_ids.shape, dtype=torch.bool, device=tail.at.device)
    cuts = Cuts(
        nothing, nothing, torch.zeros(1, dtype=torch.long, device=tail.at.device), nothing.new_zeros(view.depth, 1)
    )
    rows = torch.arange(len(tail.at), device=tail.at.device)[:, None]
    again, before = branch(view, stem, tail, cuts)[:, 0][tail.mask], stem.hidden[rows, tail.at][tail.mask]
    if not torch.allclose(again, before, atol=TOLERANCE[view.dtype] * max(1.0, float(before.abs().max())), rtol=0):
        raise UserError(
            f"{type(view.decoder).__name__} treats image tokens apart, so that none can be run again: put the image"
            " before what attention is cut to"
        )


@torch.no_grad()
def branch(view: ModelView, stem: Stem, tail: Tail, cuts: Cuts, tokens: int | None = None) -> Tensor:
    """Final normed states [B, n, t, d] of every variant's tail; ``tokens``: most of them in one pass (null: a prompt's
    length).
    """
    t, n = tail.at.shape[1], len(cuts.pathway)
    step = max(1, (tokens or stem.batch.input_ids.shape[1]) // t)
    return torch.cat([_pass(view, stem, tail, cuts.pick(slice(i, i + step))) for i in range(0, n, step)], 1)


def _pass(view: ModelView, stem: Stem, tail: Tail, cuts: Cuts) -> Tensor:
    n, (B, t) = len(cuts.pathway), tail.at.shape
    masks = _Masks(tail, cuts)
    rows = torch.arange(B, device=tail.at.device)[:, None]
    positions = stem.batch.position_ids
    at = tail.at.expand(*positions.shape[:-2], B, t)
    out = run_tail(
        view,
        stem,
        stem.embeds[rows, tail.at].repeat(1, n, 1),
        positions.gather(-1, at).repeat(*[1] * (at.ndim - 1), n),
        fork_cache(stem.prefix.cache),
        masks,
    )
    return out.view(B, n, t, -1)


def run_tail(
    view: ModelView, stem: Stem, embeds: Tensor, positions: Tensor, cache: Any, mask_of: Callable[[int], Tensor]
) -> Tensor:
    """Final normed states [B, q, d] of tokens given as ``embeds`` [B, q, d] after a cache, seeing what
    ``mask_of(layer)`` [B, q, T + q] says.
    """
    reached = set()

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        reached.add(module.layer_idx)
        return sdpa_attention_forward(
            module, q, k, v, mask_of(module.layer_idx)[:, None].to(q.device), **{**options, "is_causal": False}
        )

    seen = torch.cat([stem.prefix.mask, stem.prefix.mask.new_ones(embeds.shape[:2])], -1)
    with attention(view, attend):
        out = view.core(
            inputs_embeds=embeds, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        )
    if len(reached) != view.depth:
        raise UserError(
            f"the attention of {type(view.decoder).__name__} cannot be replaced, so its edges cannot be cut"
        )
    return out.last_hidden_state.to(view.device)


class _Masks:
    """Each layer's mask [B, n t, T + n t]; layers in which the same variants are cut share one."""

    def __init__(self, tail: Tail, cuts: Cuts) -> None:
        self.tail, self.cuts = tail, cuts
        self.last: tuple[Tensor, Tensor] | None = None
        rows = torch.arange(len(tail.at), device=tail.at.device)[:, None]
        self.target = cuts.target[:, rows, tail.at][cuts.pathway].transpose(0, 1)  # [B, n, t]
        self.source = cuts.source[cuts.pathway].transpose(0, 1)  # [B, n, T]
        self.own_source = cuts.source[:, rows, tail.at][cuts.pathway].transpose(0, 1)

    def __call__(self, layer: int) -> Tensor:
        on = self.cuts.active[layer]
        if self.last is None or not torch.equal(self.last[0], on):
            self.last = (on, self._mask(on))
        return self.last[1]

    def _mask(self, on: Tensor) -> Tensor:
        (B, n, t), T = self.target.shape, self.source.shape[-1]
        target = (self.target & on[:, None])[..., None]
        before = self.tail.before[:, None, None] & ~(target & self.source[:, :, None])
        eye = torch.eye(t, dtype=torch.bool, device=on.device)
        own = self.tail.own[:, None] & ~(target & self.own_source[:, :, None]) | eye
        blocks = own.new_zeros(B, n, t, n, t)
        each = torch.arange(n, device=on.device)
        blocks[:, each, :, each] = own.transpose(0, 1)
        return torch.cat([before.reshape(B, n * t, T), blocks.reshape(B, n * t, n * t)], -1)
