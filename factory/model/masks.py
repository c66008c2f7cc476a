"""Attention masks of tokens that follow a KV cache, where padding may lie between tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from factory.errors import UserError

OF_BOOLEANS = ("sdpa", "steering_factory")


def sliding_window(config: Any) -> int | None:
    """How many tokens a block of sliding attention sees, the querying one included; None where every block sees all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    used = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if window and used else None


def by_layer_type(decoder: PreTrainedModel, mask: Tensor, new: int) -> dict[str, Tensor]:
    """Masks [R, 1, new, T] of full and of sliding attention for the last ``new`` columns of ``mask`` [R, T].

    A window counts tokens, not columns: transformers' own masks would count the padding between tokens as well.
    Raises ``UserError`` for an attention implementation that takes no such mask.
    """
    place = mask.cumsum(-1)
    distance = place[:, -new:, None] - place[:, None, :]
    seen = (mask.bool()[:, None, :] & (distance >= 0))[:, None]
    near = seen & (distance < (sliding_window(decoder.config) or mask.shape[1] + 1))[:, None]
    return {"full_attention": as_taken(decoder, seen), "sliding_attention": as_taken(decoder, near)}


def without(mask: Any, hidden: Tensor) -> Any:
    """An attention mask as a decoder takes it (none, [R, T], [R, 1, t, T] booleans or numbers to add, or one for each
    type of layer) in which no token sees those that are ``hidden`` [R, T]."""
    if isinstance(mask, dict):
        return {kind: without(each, hidden) for kind, each in mask.items()}
    if mask is None or mask.ndim == 2:
        return (~hidden).long() if mask is None else mask * ~hidden
    unseen = hidden[:, None, None, :]
    return mask & ~unseen if mask.dtype == torch.bool else mask.masked_fill(unseen, torch.finfo(mask.dtype).min)


def closed_up(positions: Tensor, hidden: Tensor) -> Tensor:
    """Position ids [.., R, T] of a prompt from which the ``hidden`` tokens [R, T] are gone: what follows them moves
    up.
    """
    positions = positions.expand(*positions.shape[:-2], *hidden.shape)
    taken = F.pad(positions.diff(dim=-1) * hidden[:, :-1], (1, 0)).cumsum(-1)
    return positions - taken


def moved_up(call: dict[str, Any], roles: Tensor, kept: Tensor) -> tuple[dict[str, Any], Tensor, Tensor]:
    """A decoder's call in which the tokens that are ``kept`` [R, T] follow each other without a gap at the end of their
    row, after what is padding now; its ``roles`` and its mask [R, T]."""
    order = kept.bool().long().argsort(dim=-1, stable=True)
    tokens = {"input_ids": -1, "position_ids": -1, "inputs_embeds": -2}
    moved = {name: _ordered(call[name], order, at) for name, at in tokens.items() if call.get(name) is not None}
    mask = kept.gather(-1, order)
    return {**call, **moved, "attention_mask": mask}, roles.gather(-1, order.to(roles.device)), mask


def _ordered(values: Tensor, order: Tensor, at: int) -> Tensor:
    """``values`` [.., R, T] or, with ``at`` -2, [R, T, d], with the columns of each row in an ``order`` [R, T]."""
    if at == -2:
        return values.gather(-2, order[..., None].expand(*order.shape, values.shape[-1]))
    return values.expand(*values.shape[:-2], *order.shape).gather(-1, order.expand(*values.shape[:-2], *order.shape))


def takes_masks(decoder: PreTrainedModel) -> bool:
    """Whether its attention takes a mask of its own for each querying token: flash attention does not."""
    return decoder.config._attn_implementation in (*OF_BOOLEANS, "eager")


def as_taken(decoder: PreTrainedModel, seen: Tensor) -> Tensor:
    """Booleans for SDPA and this project's own attention, numbers to add for the eager one. Raises ``UserError`` for
    another.
    """
    name = decoder.config._attn_implementation
    if name in OF_BOOLEANS:
        return seen
    if name != "eager":
        raise UserError(
            f"attention '{name}' takes no mask per layer: load {type(decoder).__name__} with sdpa or eager attention"
        )
    dtype = next(decoder.parameters()).dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
