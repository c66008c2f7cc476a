"""Looking ahead: what the prompts of a call would be answered, had a block given something else, or with a modality
hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from factory.data.prompt import USER_TEXT, Role
from factory.errors import UserError
from factory.model.masks import closed_up, moved_up, sliding_window, takes_masks, without
from factory.model.prefix import at_last, new_cache
from factory.model.replay import Call, replay, replay_last
from factory.model.view import ModelView
from factory.steer.where import Where


@dataclass(frozen=True)
class Ahead:
    """Runs of the decoder on prompts with ``mask`` and ``roles`` [R, T], called as ``call`` says, to float32 next-token
    logits [R, vocabulary].

    ``unsteered`` is a block in which no steering acts. ``cache`` is what the prompts leave as they are; it is given
    where the steering changes each prompt's last token alone, so that a look runs that token alone.
    """

    view: ModelView
    layer: int
    call: Call
    mask: Tensor
    roles: Tensor
    unsteered: Callable[[], AbstractContextManager[None]] = nullcontext
    cache: Cache | None = None

    def above(self, h: Tensor) -> Tensor:
        """Had block ``layer`` given ``h`` [R, T, d]: one run of the blocks above it."""
        return self._logits(self.layer, self.call, h, self.roles, self.mask)

    @torch.no_grad()
    def above_last(self, last: Tensor) -> Tensor:
        """Had block ``layer`` given each of ``last`` [n, R, d] at the prompts' last tokens [n, R, vocabulary]: n tokens
        of each prompt run through the blocks above, in one run.
        """
        assert self.cache is not None, "given where the last token alone is steered"
        self._refuse()
        return self._logits_of_last(self.layer, last, None, self.cache)

    def hiding(self, hidden: Tensor, h: Tensor) -> Tensor:
        """As if tokens ``hidden`` [R, T] were not there: one run of the whole decoder. ``h``: any output of a block."""
        hidden, mask = hidden.to(self.view.device), self.mask
        roles = self.roles.masked_fill(hidden.to(self.roles.device), int(Role.PAD))
        call = {**self.call, "attention_mask": without(self.call.get("attention_mask"), hidden)}
        if call.get("position_ids") is not None:
            call["position_ids"] = closed_up(call["position_ids"], hidden)
        if self.view.running:  # a running state counts what no token sees
            call, roles, mask = moved_up(call, roles, mask.to(hidden.device) * ~hidden)
        with self.unsteered():
            return self._logits(-1, call, h, roles, mask)

    @torch.no_grad()
    def ignoring(self, hidden: Tensor, h: Tensor) -> Tensor:
        """As if the prompts' last tokens, and they alone, did not see each of ``hidden`` [n, R, T], tokens of the
        prompts [n, R, vocabulary]: one run of n such tokens, after one of the whole prompts where the ``cache`` they
        leave is not given. ``h``: any output of a block. Raises ``UserError`` for a model whose running states no token
        can leave out.
        """
        self.view.need_columns("no token can leave others out of what it sees")
        self._refuse()
        with self.unsteered():
            if (cache := self.cache) is None:
                replay(self.view, -1, self.call, h, self.roles, cache := new_cache(self.view))
            return self._logits_of_last(-1, None, hidden.to(self.view.device), cache)

    def _logits_of_last(self, layer: int, last: Tensor | None, hidden: Tensor | None, cache: Cache) -> Tensor:
        """Logits [n, R, vocabulary] of the prompts' last tokens, as ``last`` [n, R, d] or without ``hidden``
        [n, R, T]: all n in one run where the attention can keep them from each other.
        """
        several = next(x for x in (last, hidden) if x is not None).transpose(0, 1)
        runs = []
        for some in several.split(several.shape[1] if takes_masks(self.view.decoder) else 1, 1):
            given = (some, None) if last is not None else (None, some)
            states, _ = replay_last(self.view, layer, self.call, given[0], self.roles, self.mask, cache, given[1])
            runs.append(states)
        return self.view.logits(torch.cat(runs, 1)).transpose(0, 1)

    @torch.no_grad()
    def _logits(self, layer: int, call: Call, h: Tensor, roles: Tensor, mask: Tensor) -> Tensor:
        self._refuse()
        final = replay(self.view, layer, call, h, roles, new_cache(self.view)).to(self.view.device)
        return self.view.logits(at_last(final, mask))

    def _refuse(self) -> None:
        if not self.view.steps.alone():
            raise UserError(
                "this controller looks ahead by running the decoder's blocks by themselves, and another thread is"
                " generating with them: generate in one thread at a time"
            )


def last_alone(view: ModelView, where: Where) -> bool:
    """Whether steering there changes nothing of a prompt but its last token, so that this token alone can be run
    again: no other token sees it, and it sees all others.
    """
    seen_by_others = view.whole_prompts or sliding_window(view.decoder.config) is not None
    return where.last_alone and not seen_by_others


def spoken(roles: Tensor, role: Tensor) -> Tensor:
    """[R, T] booleans: the tokens of ``role`` [] among ``roles`` [R, T], and those of the template that part them from
    a text after them.
    """
    at, said = torch.arange(roles.shape[1], device=roles.device).expand_as(roles), roles > Role.TEMPLATE
    before = roles.gather(1, torch.where(said, at, 0).cummax(1).values)
    after = roles.gather(1, torch.where(said, at, roles.shape[1] - 1).flip(1).cummin(1).values.flip(1))
    text_after = torch.stack([after == text for text in (*USER_TEXT, Role.INSTRUCTION)]).any(0)
    return (roles == role) | ((roles == Role.TEMPLATE) & (before == role) & text_after)
