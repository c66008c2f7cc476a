"""The single-head knockout map: every head's output silenced at the last position, one at a time, in one pass.

A head silenced in block l leaves all blocks below as they are, so block l adds one row per head to those of the blocks
below: the blocks run on rows that grow from heads to layers * heads, one token each over the prompt's cache. That is
layers * heads / 2 tokens through the model: below one prefill of a prompt of that length, beside the prefill itself.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from factory.instruments.branch import Stem, run_tail
from factory.model.prefix import fork_cache, last_index
from factory.model.view import ModelView


@torch.no_grad()
def silenced(view: ModelView, stem: Stem) -> Tensor:
    """Final normed states [B, layers, heads, d] of each prompt's last token, with each head silenced there."""
    B, H = len(stem.embeds), view.heads
    last = last_index(stem.batch.attention_mask)
    rows = torch.arange(B, device=last.device)
    before = stem.batch.attention_mask.bool().clone()
    before[rows, last] = False

    def rows_up_to(layer: int) -> int:
        return 1 + (layer + 1) * H

    def mask_of(layer: int) -> Tensor:
        n = rows_up_to(layer)
        eye = torch.eye(n, dtype=torch.bool, device=last.device)
        return torch.cat([before[:, None].expand(-1, n, -1), eye.expand(B, -1, -1)], -1)

    def add_rows(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.cat([args[0], args[0][:, :1].expand(-1, H, -1)], 1), *args[1:]

    def silence(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].unflatten(-1, (H, view.head_dim)).clone()
        each = torch.arange(H, device=x.device)
        x[:, x.shape[1] - H + each, each] = 0
        return x.flatten(-2), *args[1:]

    positions = stem.batch.position_ids
    at = last[:, None].expand(*positions.shape[:-1], 1)
    with ExitStack() as stack:
        for i, block in enumerate(view.layers):
            stack.callback(block.register_forward_pre_hook(add_rows).remove)
            stack.callback(view.o_proj(i).register_forward_pre_hook(silence).remove)
        out = run_tail(
            view,
            stem,
            stem.embeds[rows, last][:, None],
            positions.gather(-1, at),
            fork_cache(stem.prefix.cache),
            mask_of,
        )
    # A decoder may shape what it gives by the one token that it was given, as GPT-2: rows then stand beside prompts.
    return out.reshape(B, rows_up_to(view.depth - 1), -1)[:, 1:].unflatten(1, (view.depth, H))
