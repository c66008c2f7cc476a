"""Strength sweeps: the blocks up to the steered one run once per batch, however many strengths, methods and directions follow.

Cost of S cells over a model of L blocks steered at block l: one prefill plus S * (L - l - 1) / L of a prefill, and decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from factory.model.encode import Batch
from factory.model.prefix import Prefix, Step, at_last, fork_cache, greedy, prefill
from factory.model.replay import Call, replay, without_cache
from factory.model.view import ModelView
from factory.steer.runtime import Steering, check, steer


@dataclass(frozen=True)
class Trunk:
    """A prompt batch run up to (and unsteered beyond) one block: what every cell of a sweep shares.

    ``states`` [B, T, d] the block's output, ``calls`` the keyword arguments of the blocks above it, ``final`` [B, T, d] the unsteered end.
    """

    layer: int
    batch: Batch
    prefix: Prefix
    states: Tensor
    final: Tensor
    calls: tuple[Call, ...]

    @property
    def last(self) -> Tensor:
        """h_[I,T] [B, d] in float32: the block's output at each prompt's last token."""
        return at_last(self.states, self.batch.attention_mask).float()


@torch.no_grad()
def run_trunk(view: ModelView, batch: Batch, layer: int) -> Trunk:
    """Prefill once, unsteered, and keep what the blocks above ``layer`` were called with."""
    calls: list[Call] = []
    states: list[Tensor] = []
    with _recorded(view, layer, calls, states):
        final, prefix = prefill(view, batch)
    return Trunk(layer, batch, prefix, states[0], final, tuple(calls))


@contextmanager
def _recorded(view: ModelView, layer: int, calls: list[Call], states: list[Tensor]) -> Iterator[None]:
    def keep_output(module: nn.Module, args: tuple, output: Tensor) -> None:
        states.append(output)

    def keep_call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append(without_cache(kwargs))

    handles = [view.layers[layer].register_forward_hook(keep_output)]
    handles += [block.register_forward_pre_hook(keep_call, with_kwargs=True) for block in view.layers[layer + 1 :]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_cell(view: ModelView, trunk: Trunk, steering: Steering | None, max_new_tokens: int) -> Tensor:
    """Greedy answers [B, n] of one cell: ``steering`` (or none) applied to the shared trunk."""
    if steering is None:
        return _answer(view, trunk, trunk.final, fork_cache(trunk.prefix.cache), max_new_tokens)
    check(steering, view)
    steering.move(trunk.states.device)
    h = steering.apply(trunk.states, Step(trunk.batch.roles), _ahead(view, trunk))
    hidden, cache = _upper(view, trunk, h)
    with steer(view, steering):
        return _answer(view, trunk, hidden, cache, max_new_tokens)


@torch.no_grad()
def look_ahead(view: ModelView, trunk: Trunk, steering: Steering) -> Tensor:
    """What the method's controller sees of its trial strengths on the trunk's prompts [B, S, F] float32."""
    steering.move(trunk.states.device)
    return steering.look(trunk.states, Step(trunk.batch.roles), _ahead(view, trunk))


def _ahead(view: ModelView, trunk: Trunk) -> Callable[[Tensor], Tensor]:
    return lambda h: _next_logits(view, trunk, _upper(view, trunk, h)[0])


def _upper(view: ModelView, trunk: Trunk, h: Tensor) -> tuple[Tensor, Cache]:
    """Run the blocks above the trunk on ``h``: final normed states and a cache of all blocks."""
    upper = DynamicCache(config=view.text_config)
    hidden = replay(view, trunk.layer, trunk.calls, h, upper)
    cache = fork_cache(trunk.prefix.cache)
    cache.layers[trunk.layer + 1 :] = upper.layers[trunk.layer + 1 :]
    return hidden, cache


def _answer(view: ModelView, trunk: Trunk, hidden: Tensor, cache: Cache, max_new_tokens: int) -> Tensor:
    p = trunk.prefix
    return greedy(view, Prefix(cache, p.mask, p.roles, p.next_position), _next_logits(view, trunk, hidden), max_new_tokens)


def _next_logits(view: ModelView, trunk: Trunk, hidden: Tensor) -> Tensor:
    return view.logits(at_last(hidden, trunk.batch.attention_mask))
