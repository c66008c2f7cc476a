"""Running a model on a KV cache: prefill once, fork, extend, decode. Positions are explicit, padding may be on either
side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from factory.data.prompt import Role
from factory.model.encode import Batch
from factory.model.steps import Step, announced
from factory.model.view import ModelView


@dataclass(frozen=True)
class Prefix:
    """Tokens already in a KV cache: their ``mask`` and ``roles`` [R, T] and the position of the next token [R]."""

    cache: Cache
    mask: Tensor
    roles: Tensor
    next_position: Tensor

    @property
    def rows(self) -> int:
        return self.mask.shape[0]

    def fork(self, rows: Tensor | None = None) -> Prefix:
        """A prefix that can be extended without changing this one; ``rows`` [R'] picks and repeats rows."""
        pick = (lambda t: t) if rows is None else (lambda t: t.index_select(0, rows))
        return Prefix(fork_cache(self.cache, rows), pick(self.mask), pick(self.roles), pick(self.next_position))


def new_cache() -> Cache:
    """An empty cache that keeps every token of every layer: a column is then the same token in all of them, sliding
    windows or not.
    """
    return DynamicCache()


def fork_cache(cache: Cache, rows: Tensor | None = None) -> Cache:
    """A cache whose layers can be replaced or extended without touching the original's."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    if rows is None:
        return new
    for layer in new.layers:
        here = rows.to(layer.keys.device)  # a block's cache lies on the block's device
        layer.keys, layer.values = layer.keys.index_select(0, here), layer.values.index_select(0, here)
    return new


def prefill(view: ModelView, batch: Batch) -> tuple[Tensor, Prefix]:
    """Run whole prompts: final hidden states [B, T, d] and the prefix that holds them."""
    with announced(view, Step(batch.roles)):
        out = view.core(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            past_key_values=new_cache(),
            use_cache=True,
            **batch.of_tokens,
            **batch.images,
        )
    of_axes = batch.position_ids.view(-1, *batch.attention_mask.shape)
    following = (of_axes * batch.attention_mask).amax((0, -1)) + 1
    return out.last_hidden_state.to(view.device), Prefix(
        out.past_key_values, batch.attention_mask, batch.roles, following
    )


def extend(
    view: ModelView, prefix: Prefix, ids: Tensor, mask: Tensor, roles: Tensor, generated: bool = False
) -> tuple[Tensor, Prefix]:
    """Run tokens ``ids`` [R, t] (``mask`` 0 on padding) after a prefix of R rows; the prefix's cache is extended.

    Returns the final hidden states [R, t, d] and the longer prefix.
    """
    full = torch.cat([prefix.mask, mask], -1)
    seen = view.family.attention_mask(view.decoder, full, ids.shape[1])
    positions = prefix.next_position[:, None] + (mask.cumsum(-1) - 1).clamp_min(0)
    with announced(view, Step(roles, generated)):
        out = view.core(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=prefix.cache, use_cache=True
        )
    longer = Prefix(
        out.past_key_values, full, torch.cat([prefix.roles, roles], -1), prefix.next_position + mask.sum(-1)
    )
    return out.last_hidden_state.to(view.device), longer


def last_index(mask: Tensor) -> Tensor:
    """Column [R] of each row's last token under a mask [R, T] padded on either side."""
    return mask.shape[1] - 1 - mask.flip(-1).long().argmax(-1)


def at_last(states: Tensor, mask: Tensor) -> Tensor:
    """[R, d]: each row's state at its last token, from states [R, T, d]."""
    return states[torch.arange(states.shape[0], device=states.device), last_index(mask).to(states.device)]


def with_last(states: Tensor, last: Tensor, mask: Tensor) -> Tensor:
    """``states`` [R, T, d] with ``last`` [R, d] at each row's last token."""
    rows = torch.arange(states.shape[0], device=states.device)
    return states.index_put((rows, last_index(mask).to(states.device)), last.to(states.device, states.dtype))


def split_last(batch: Batch) -> tuple[Batch, Tensor, Tensor]:
    """A batch without each row's last token, that token's ids [B, 1] and roles [B, 1] (what a prefix is queried
    with).
    """
    rows, last = torch.arange(batch.size, device=batch.input_ids.device), last_index(batch.attention_mask)
    mask, roles = batch.attention_mask.clone(), batch.roles.clone()
    mask[rows, last], roles[rows, last] = 0, 0
    return (
        replace(batch, attention_mask=mask, roles=roles),
        batch.input_ids[rows, last][:, None],
        batch.roles[rows, last][:, None],
    )


Heard = Callable[[Tensor], None]
"""What follows answers as they are written: tokens [R, n] so far."""


def likeliest(logits: Tensor) -> Tensor:
    """Each row's likeliest token [R] from logits [R, vocabulary]."""
    return logits.argmax(-1)


def greedy(
    view: ModelView,
    prefix: Prefix,
    logits: Tensor,
    max_new_tokens: int,
    among: Tensor | None = None,
    pick: Callable[[Tensor], Tensor] = likeliest,
    heard: Heard | None = None,
) -> Tensor:
    """Greedy answers [R, <= max_new_tokens] from next-token ``logits`` [R, vocabulary]; padding follows an end token.

    With ``among`` the answer is one of these token ids, one token alone. ``pick`` chooses the column [R] of each row's
    token. ``heard`` is told the answers so far [R, n] after each token; what it raises ends them.
    """
    if among is not None:
        return among[pick(logits[:, among])][:, None]
    tokens, done = [], torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    while True:
        token = pick(logits).masked_fill(done, view.pad_id)
        tokens.append(token)
        if heard is not None:
            heard(torch.stack(tokens, -1))
        done = done | torch.isin(token, view.eos_ids)
        if len(tokens) == max_new_tokens or bool(done.all()):
            return torch.stack(tokens, -1)
        one = torch.ones_like(token)[:, None]
        hidden, prefix = extend(view, prefix, token[:, None], one, one * int(Role.ANSWER), generated=True)
        logits = view.logits(hidden[:, -1])


def decode_texts(view: ModelView, tokens: Tensor) -> list[str]:
    """Answers as text: what comes before the first end token, special tokens left out."""
    return [text.strip() for text in view.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)]
