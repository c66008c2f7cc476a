"""Strength sweeps: the blocks up to the steered one run once per batch, however many strengths, methods and directions
follow.

Cost of S cells over a model of L blocks steered at block l: one prefill plus S * (L - l - 1) / L of a prefill, and
decoding. Where a method steers each prompt's last token alone, a cell runs that token in place of the prefill.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from factory.data.prompt import Prompt
from factory.model.alike import alike
from factory.model.encode import Batch
from factory.model.prefix import Heard, Prefix, Step, at_last, fork_cache, greedy, new_cache, prefill
from factory.model.replay import Call, recorded, replay, run_on_last
from factory.model.view import ModelView
from factory.steer.ahead import Ahead, last_alone
from factory.steer.runtime import Steering, check, going_on, steer


@dataclass(frozen=True)
class Trunk:
    """A prompt batch run up to (and unsteered beyond) one block: what every cell of a sweep shares.

    ``states`` [B, T, d] the block's output, ``call`` how the decoder was called, ``final`` [B, T, d] the unsteered end.
    """

    layer: int
    batch: Batch
    prefix: Prefix
    states: Tensor
    final: Tensor
    call: Call

    @property
    def last(self) -> Tensor:
        """h_[I,T] [B, d] in float32: the block's output at each prompt's last token."""
        return at_last(self.states, self.batch.attention_mask.to(self.states.device)).float()


@torch.no_grad()
def run_trunk(view: ModelView, batch: Batch, layer: int) -> Trunk:
    """Prefill once, unsteered, and keep what block ``layer`` gave and how the decoder was called."""
    with _kept(view, layer) as kept:
        final, prefix = prefill(view, batch)
    return Trunk(layer, batch, prefix, kept.states[0], final, kept.calls[0])


@torch.no_grad()
def trunk_of_prompts(view: ModelView, prompts: Sequence[Prompt], layer: int) -> Trunk:
    """As ``run_trunk``; what prompts that begin alike have in common is run once."""
    found = alike(view, prompts) if view.family.plain_calls else None
    if found is None:
        return run_trunk(view, view.encode(prompts), layer)
    with _kept(view, layer) as of_heads:
        hidden, begun = found.begin(view)
    with _kept(view, layer) as of_tails:
        last, prefix = found.go_on(view, begun)
    states, final = found.put(of_heads.states[0], of_tails.states[0]), found.put(hidden, last)
    return Trunk(layer, found.batch, prefix, states, final, found.call(of_heads.calls[0], of_tails.calls[0]))


@dataclass(frozen=True)
class _Kept:
    states: list[Tensor]
    calls: list[Call]


@contextmanager
def _kept(view: ModelView, layer: int) -> Iterator[_Kept]:
    """Within the block what block ``layer`` gives and how the decoder is called first."""
    kept = _Kept([], [])
    handle = view.layers[layer].register_forward_hook(lambda module, args, output: kept.states.append(output))
    try:
        with recorded(view, kept.calls):
            yield kept
    finally:
        handle.remove()


@torch.no_grad()
def run_cell(
    view: ModelView,
    trunk: Trunk,
    steering: Steering | None,
    max_new_tokens: int,
    among: Tensor | None = None,
    heard: Heard | None = None,
) -> Tensor:
    """Greedy answers [B, n] of one cell: ``steering`` (or none) applied to the shared trunk, or to whole prompts where
    it acts elsewhere; ``among`` and ``heard`` as in ``greedy``."""

    def answer(hidden: Tensor, cache: Cache) -> Tensor:
        start = replace(trunk.prefix, cache=cache)
        return greedy(view, start, _next_logits(view, trunk, hidden), max_new_tokens, among, heard=heard)

    if steering is None:
        return answer(trunk.final, fork_cache(trunk.prefix.cache))
    check(steering, view)
    if not meets(trunk, steering):
        with steer(view, steering):
            hidden, prefix = prefill(view, trunk.batch)
            return answer(hidden, prefix.cache)
    if _last_alone(view, trunk, steering):
        hidden, cache = _steered_last(view, trunk, steering)
    else:
        hidden, cache = _steered(view, trunk, steering)
    with going_on(view, [steering]):
        return answer(hidden, cache)


def final_states(view: ModelView, trunk: Trunk, steering: Steering | None) -> Tensor:
    """Final normed states [B, T, d] of the trunk's prompts in one cell, and of answers that are given with them.
    Where gradients are taken they reach the steering's state.
    """
    if steering is None:
        return trunk.final
    check(steering, view)
    if meets(trunk, steering):
        return _steered(view, trunk, steering)[0]
    with steer(view, steering):
        return prefill(view, trunk.batch)[0]


def meets(trunk: Trunk, steering: Steering) -> bool:
    """Whether a steering acts on the output of the trunk's block and nowhere else."""
    return steering.where.site == "block" and steering.where.blocks == (trunk.layer,)


def _steered(view: ModelView, trunk: Trunk, steering: Steering) -> tuple[Tensor, Cache]:
    """The trunk's prompts run on from its block, steered there: final states and a cache of all blocks."""
    steering.move(trunk.states.device)
    h = steering.apply(trunk.states, Step(trunk.batch.roles), _ahead(view, trunk))
    return _upper(view, trunk, h)


@torch.no_grad()
def look_ahead(view: ModelView, trunk: Trunk, steering: Steering) -> Tensor:
    """What the method's controller sees of its trial strengths on the trunk's prompts [B, S, F] float32."""
    steering.move(trunk.states.device)
    cache = trunk.prefix.cache if _last_alone(view, trunk, steering) else None
    return steering.look(trunk.states, Step(trunk.batch.roles), _ahead(view, trunk, cache))


def _ahead(view: ModelView, trunk: Trunk, cache: Cache | None = None) -> Ahead:
    return Ahead(view, trunk.layer, trunk.call, trunk.batch.attention_mask, trunk.batch.roles, cache=cache)


def _last_alone(view: ModelView, trunk: Trunk, steering: Steering) -> bool:
    """Whether of the trunk's prompts the last token alone is another with a steering that meets the trunk."""
    return last_alone(view, steering.where) and not bool(Step(trunk.batch.roles).answer.any())


def _steered_last(view: ModelView, trunk: Trunk, steering: Steering) -> tuple[Tensor, Cache]:
    """As ``_steered``, by a steering of each prompt's last token alone: that token alone runs on from the block."""
    steering.move(trunk.states.device)
    mask, cache = trunk.batch.attention_mask, trunk.prefix.cache
    h = steering.apply(trunk.states, Step(trunk.batch.roles), _ahead(view, trunk, cache))
    return run_on_last(view, trunk.layer, trunk.call, trunk.states, h, trunk.batch.roles, mask, cache, trunk.final)


def _upper(view: ModelView, trunk: Trunk, h: Tensor) -> tuple[Tensor, Cache]:
    """Run the blocks above the trunk on ``h``: final normed states and a cache of all blocks."""
    upper = new_cache(view)
    hidden = replay(view, trunk.layer, trunk.call, h, trunk.batch.roles, upper).to(view.device)
    cache = fork_cache(trunk.prefix.cache)
    cache.layers[trunk.layer + 1 :] = upper.layers[trunk.layer + 1 :]
    return hidden, cache


def _next_logits(view: ModelView, trunk: Trunk, hidden: Tensor) -> Tensor:
    return view.logits(at_last(hidden, trunk.batch.attention_mask))
