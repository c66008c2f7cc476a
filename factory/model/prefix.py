"""Running a model on a KV cache: prefill once, fork, extend, decode. Positions are explicit, padding may be on either
side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.encode import Batch
from factory.model.steps import Step, announced
from factory.model.view import ModelView


@dataclass(frozen=True)
class Prefix:
    """Tokens already in a KV cache: their ``mask`` and ``roles`` [R, T] and the position of the next token [R].

    ``padded``: padding has gone into a running state after the last tokens, so that nothing can follow.
    """

    cache: Cache
    mask: Tensor
    roles: Tensor
    next_position: Tensor
    padded: bool = False

    @property
    def rows(self) -> int:
        return self.mask.shape[0]

    def fork(self, rows: Tensor | None = None) -> Prefix:
        """A prefix that can be extended without changing this one; ``rows`` [R'] picks and repeats rows."""
        pick = (lambda t: t) if rows is None else (lambda t: t.index_select(0, rows))
        of_tokens = pick(self.mask), pick(self.roles), pick(self.next_position)
        return Prefix(fork_cache(self.cache, rows), *of_tokens, padded=self.padded)


def new_cache(view: ModelView) -> Cache:
    """An empty cache that keeps every token of every layer with attention: a column is then the same token in all of
    them, sliding windows or not.
    """
    return DynamicCache(config=view.text_config) if view.running else DynamicCache()


def fork_cache(cache: Cache, rows: Tensor | None = None) -> Cache:
    """A cache whose layers can be replaced or extended without touching the original's."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in new.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            _part(layer, rows)
        elif rows is not None:
            here = rows.to(layer.keys.device)  # a block's cache lies on the block's device
            layer.keys, layer.values = layer.keys.index_select(0, here), layer.values.index_select(0, here)
    return new


def _part(layer: LinearAttentionCacheLayerMixin, rows: Tensor | None) -> None:
    """Give a copied layer states of its own, which the model writes into, with all that is told of them."""
    pick = lambda t: t.clone() if rows is None else t.index_select(0, rows.to(t.device))
    for name, told in vars(layer).items():
        if isinstance(told, dict):
            setattr(layer, name, {i: pick(t) if isinstance(t, Tensor) else t for i, t in told.items()})


def prefill(view: ModelView, batch: Batch) -> tuple[Tensor, Prefix]:
    """Run whole prompts: final hidden states [B, T, d] and the prefix that holds them."""
    with announced(view, Step(batch.roles)):
        out = view.core(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            past_key_values=new_cache(view),
            use_cache=True,
            **batch.of_tokens,
            **batch.images,
        )
    of_axes = batch.position_ids.view(-1, *batch.attention_mask.shape)
    following = (of_axes * batch.attention_mask).amax((0, -1)) + 1
    padded = bool(view.running) and not bool(batch.attention_mask[:, -1].all())
    return out.last_hidden_state.to(view.device), Prefix(
        out.past_key_values, batch.attention_mask, batch.roles, following, padded
    )


def extend(
    view: ModelView, prefix: Prefix, ids: Tensor, mask: Tensor, roles: Tensor, generated: bool = False
) -> tuple[Tensor, Prefix]:
    """Run tokens ``ids`` [R, t] (``mask`` 0 on padding) after a prefix of R rows; the prefix's cache is extended.

    Returns the final hidden states [R, t, d] and the longer prefix. Raises ``UserError`` where padding would lie
    between tokens that go through a running state.
    """
    padded = _padded(view, prefix, mask)
    full = torch.cat([prefix.mask, mask], -1)
    seen = view.family.attention_mask(view.decoder, full, ids.shape[1])
    positions = prefix.next_position[:, None] + (mask.cumsum(-1) - 1).clamp_min(0)
    with announced(view, Step(roles, generated)):
        out = view.core(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=prefix.cache, use_cache=True
        )
    longer = Prefix(
        out.past_key_values, full, torch.cat([prefix.roles, roles], -1), prefix.next_position + mask.sum(-1), padded
    )
    return out.last_hidden_state.to(view.device), longer


def _padded(view: ModelView, prefix: Prefix, mask: Tensor) -> bool:
    """Whether tokens under ``mask`` [R, t] leave padding in a running state. A single column is no padding."""
    if not view.running or (mask.shape[1] == 1 and not prefix.padded):
        return False
    if prefix.padded or not bool(mask[:, 0].all()):
        raise UserError(
            f"{type(view.model).__name__} keeps a running state, in which padding between tokens would count: pad"
            " prompts on the left, and run rows that go on by unlike lengths apart"
        )
    return not bool(mask[:, -1].all())


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
