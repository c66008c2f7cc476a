"""Running only the blocks above one block: what a strength sweep repeats, and what a controller may look ahead with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from factory.model.masks import as_taken
from factory.model.prefix import at_last, fork_cache, last_index, with_last
from factory.model.steps import Step, aside
from factory.model.view import ModelView

Call = dict[str, Any]


class _Given(nn.Module):
    """Stands in for a block whose output is known."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.output


def call_of(decoder: nn.Module, args: tuple, kwargs: Call) -> Call:
    """The arguments of a decoder's call by name, the KV cache aside."""
    named = inspect.signature(decoder.forward).bind_partial(*args).arguments if args else {}
    return {k: v for k, v in {**named, **kwargs}.items() if k != "past_key_values"}


@contextmanager
def recorded(view: ModelView, calls: list[Call]) -> Iterator[None]:
    """Put the arguments of the decoder's next call, the KV cache aside, into ``calls`` where that is empty: before a
    hook of a tuner changes them, which does so again when the call is made again.
    """

    def keep(module: nn.Module, args: tuple, kwargs: Call) -> None:
        if not calls:
            calls.append(call_of(module, args, kwargs))

    handle = view.decoder.register_forward_pre_hook(keep, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def replay(view: ModelView, layer: int, call: Call, h: Tensor, roles: Tensor, cache: Cache | None) -> Tensor:
    """Final normed states [R, t, d] of a call of the decoder on tokens of ``roles`` [R, t], had block ``layer`` given
    ``h`` [R, t, d].

    The decoder itself runs, with the blocks up to ``layer`` left out: what it does between blocks, and what it hands
    to each of them, stays its own affair. ``call`` has its keyword arguments; a ``cache`` holds none of these tokens
    and receives those of the blocks above.
    """
    name, blocks = view.family.layers_name, view.layers
    setattr(view.decoder, name, nn.ModuleList([_Given(h) if i <= layer else block for i, block in enumerate(blocks)]))
    try:
        with aside(view, Step(roles)):
            return view.decoder(**{**call, "past_key_values": cache}).last_hidden_state.to(view.device)
    finally:
        setattr(view.decoder, name, blocks)


def replay_last(
    view: ModelView,
    layer: int,
    call: Call,
    last: Tensor | None,
    roles: Tensor,
    mask: Tensor,
    cache: Cache,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Cache]:
    """Final normed states [R, n, d] of the last tokens of prompts ``mask`` and ``roles`` [R, T], had block ``layer``
    given each of ``last`` [R, n, d] there, and had each not seen its ``hidden`` [R, n, T]: n tokens of each prompt,
    none of which sees another, run through the blocks above in one pass; through all of them with layer -1, from the
    embedding.

    ``call`` is how the decoder was called for the prompts, ``cache`` what that left, which stays as it is; the one
    returned has these tokens as further columns in the blocks above. Of models whose tokens see none that follow.
    Raises ``UserError`` for several tokens where the attention takes no mask for each.
    """
    at = last_index(mask)
    first = _embedding(view, call, at) if last is None else last
    n = first.shape[1] if hidden is None else hidden.shape[1]
    first = first.expand(-1, n, -1)
    several = {
        "inputs_embeds": first,
        "attention_mask": _each_alone(view, call, mask, at, n, hidden),
        "position_ids": _taken(call.get("position_ids"), at, n),
        "use_cache": True,
    }
    longer = fork_cache(cache)
    own = roles.gather(1, at.to(roles.device)[:, None]).expand(-1, n)
    return replay(view, layer, several, first, own, longer), longer


def _each_alone(view: ModelView, call: Call, mask: Tensor, at: Tensor, n: int, hidden: Tensor | None) -> Any:
    """The attention mask of ``n`` further columns in place of the columns ``at`` [R], each of which sees the prompt
    without its ``hidden`` [R, n, T] and itself.
    """
    told, rows = call.get("attention_mask"), torch.arange(len(at), device=at.device)
    visible = told * mask if isinstance(told, Tensor) and told.shape == mask.shape else mask
    before = visible.index_put((rows, at), visible.new_zeros(())).bool()[:, None].expand(-1, n, -1)
    before = before if hidden is None else before & ~hidden
    own = torch.eye(n, dtype=torch.bool, device=mask.device).expand(len(at), n, n)
    seen = torch.cat([before, own], -1)
    if n == 1:
        return view.family.attention_mask(view.decoder, seen[:, 0].to(mask.dtype), 1)
    return as_taken(view.decoder, seen[:, None])


def run_on_last(
    view: ModelView,
    layer: int,
    call: Call,
    h: Tensor,
    steered: Tensor,
    roles: Tensor,
    mask: Tensor,
    cache: Cache,
    final: Tensor,
) -> tuple[Tensor, Cache]:
    """Final states [R, T, d] and cache of prompts, had block ``layer`` given ``steered`` [R, T, d], which is another
    than its output ``h`` at each prompt's last token alone; ``call``, ``cache`` and ``final`` as the prompts left them.

    Where that token is the same too, all keeps its very bits.
    """
    own, last = at_last(h, mask), at_last(steered, mask)
    other = (own != last).any(-1)
    states, longer = replay_last(view, layer, call, last[:, None], roles, mask, cache)
    kept = at_last(final, mask)
    final = with_last(final, torch.where(other.to(kept.device)[:, None], states[:, 0].to(kept), kept), mask)
    new = fork_cache(cache)
    for before, after, out in zip(cache.layers, longer.layers, new.layers, strict=True):
        if after.keys.shape == before.keys.shape:
            continue  # a block below, which ran nothing
        at = last_index(mask).to(after.keys.device)
        rows, moved = torch.arange(len(at), device=at.device), other.to(at.device)[:, None, None]
        for name in ("keys", "values"):
            held, token = getattr(before, name).transpose(1, 2), getattr(after, name)[:, :, -1]
            token = torch.where(moved, token, held[rows, at])
            setattr(out, name, held.index_put((rows, at), token).transpose(1, 2))
    return final, new


def _embedding(view: ModelView, call: Call, at: Tensor) -> Tensor:
    """What a call of the decoder gives its blocks [R, 1, d] for the columns ``at`` [R]."""
    rows = torch.arange(len(at), device=at.device)
    if call.get("inputs_embeds") is not None:
        return call["inputs_embeds"][rows, at][:, None]
    return view.decoder.get_input_embeddings()(call["input_ids"][rows, at])[:, None]


def _taken(positions: Tensor | None, at: Tensor, n: int) -> Tensor:
    """Position ids [.., R, n], n times those of the columns ``at`` [R], of a call's [.., R, T], or of one that counts
    columns.
    """
    if positions is None:
        return at[:, None].expand(-1, n)
    columns = at.to(positions.device)[:, None].expand(*positions.shape[:-2], len(at), n)
    return positions.expand(*positions.shape[:-2], len(at), positions.shape[-1]).gather(-1, columns)
