"""Prompts that begin alike, as one question with its options in either order: what they have in common is run once, and
each goes on from there.

What comes out is what a run of the whole prompts gives, to rounding: states, cache and call have the columns of the
batch in which every prompt is whole. Cost: of each group one head, and of each prompt what it does not share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from factory.data.prompt import Prompt, Role, Segment
from factory.model.encode import Batch, Encoded
from factory.model.prefix import Prefix, extend, prefill
from factory.model.replay import Call
from factory.model.view import ModelView
from factory.model.zero import cut_over_ranks


def groups_of(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Prompts, by their places, in groups of those that follow each other and begin alike: they have their first
    segments in common, all their pictures among them, and where there is none a text of the user's.
    """
    groups: list[list[int]] = []
    shared = 0  # segments that the latest group has in common
    for i, prompt in enumerate(prompts):
        first = prompts[groups[-1][0]] if groups else prompt
        both = min(shared, _in_common(first.segments, prompt.segments))
        after = (*first.segments[both:], *prompt.segments[both:])
        if _told(first.segments[:both]) and all(s.image is None for s in after):
            groups[-1].append(i)
            shared = both
        else:
            groups.append([i])
            shared = len(prompt.segments)
    return groups


def _in_common(one: Sequence[Segment], other: Sequence[Segment]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _told(segments: Sequence[Segment]) -> bool:
    return any(s.role > Role.TEMPLATE and s.role != Role.SYSTEM for s in segments)


def shareable(view: ModelView) -> bool:
    """Whether parts of a prompt may be run by themselves: its tokens see none that follow, nobody acts on tokens by
    their place among all (a steering, a tuner), and no other rank waits for as many forwards.
    """
    return not (view.whole_prompts or view.steps.users or cut_over_ranks(view.model))


def common_length(rows: Sequence[Encoded]) -> int:
    """Tokens of the longest common beginning, at least one token short of each row."""
    n = min(len(e.ids) for e in rows) - 1
    return next((i for i in range(n) if len({e.ids[i] for e in rows}) > 1), n)


def cut_at(encoded: Encoded, n: int) -> tuple[Encoded, Encoded]:
    """The first ``n`` tokens and the others."""
    return Encoded(encoded.ids[:n], encoded.roles[:n], ""), Encoded(encoded.ids[n:], encoded.roles[n:], "")


@dataclass(frozen=True)
class Alike:
    """Prompts of which some begin alike: the ``batch`` of all, whole; the ``heads`` of each group once; the ``tails``,
    what follows in each prompt; of each prompt its group in ``heads`` [R]; for each of the batch's columns [R, T] the
    column of head and tail, side by side, that it is.
    """

    batch: Batch
    heads: Batch
    tails: Batch
    rows: Tensor
    columns: Tensor

    def begin(self, view: ModelView) -> tuple[Tensor, Prefix]:
        """Run the heads: final states [G, t, d] and the prefix that holds them."""
        return prefill(view, self.heads)

    def go_on(self, view: ModelView, prefix: Prefix) -> tuple[Tensor, Prefix]:
        """Run the tails: final states [R, t', d], and the prefix that holds whole prompts in the batch's columns."""
        tails, batch = self.tails, self.batch
        hidden, after = extend(view, prefix.fork(self.rows), tails.input_ids, tails.attention_mask, tails.roles)
        whole = Prefix(self._ordered(after.cache), batch.attention_mask, batch.roles, after.next_position)
        return hidden, whole

    def put(self, of_heads: Tensor, of_tails: Tensor) -> Tensor:
        """States [R, T, d] in the batch's columns, from those of heads [G, t, d] and tails [R, t', d]."""
        both = torch.cat([of_heads.index_select(0, self.rows.to(of_heads.device)), of_tails.to(of_heads.device)], 1)
        return both.take_along_dim(self.columns.to(both.device)[..., None], 1)

    def call(self, of_heads: Call, of_tails: Call) -> Call:
        """How the decoder is called for the whole batch, from its calls for heads and tails; of a family with
        ``plain_calls``."""
        told = {**of_heads, "attention_mask": self.batch.attention_mask, "position_ids": self.batch.position_ids}
        if told.get("inputs_embeds") is None:
            return {**told, "input_ids": self.batch.input_ids}
        return {**told, "inputs_embeds": self.put(of_heads["inputs_embeds"], of_tails["inputs_embeds"])}

    def _ordered(self, cache: Cache) -> Cache:
        """The cache of heads and tails, layer by layer in the batch's columns."""
        for layer in cache.layers:
            columns = self.columns.to(layer.keys.device)[:, None, :, None]
            layer.keys, layer.values = (t.take_along_dim(columns, 2) for t in (layer.keys, layer.values))
        return cache


def alike(view: ModelView, prompts: Sequence[Prompt]) -> Alike | None:
    """Prompts as what they share and what each has to itself; None where nothing is or can be shared."""
    if not shareable(view) or len(groups := groups_of(prompts)) == len(prompts):
        return None
    images, texts = view.images_of(prompts)
    encoded = view.tokens(prompts, texts)
    shared = [common_length([encoded[i] for i in group]) for group in groups]
    of_row = [(g, shared[g]) for g, group in enumerate(groups) for _ in group]
    tails = [cut_at(e, n)[1] for e, (_, n) in zip(encoded, of_row, strict=True)]
    if any(Role.IMAGE in tail.roles for tail in tails):
        return None
    first = [group[0] for group in groups]
    heads = [cut_at(encoded[i], n)[0] for i, n in zip(first, shared, strict=True)]
    batch = view.collate(encoded, images)
    head = view.collate(heads, view.images_of([prompts[i] for i in first])[0])
    rows = torch.tensor([g for g, _ in of_row], device=view.device)
    tail = view.collate(tails, {})
    return Alike(batch, head, tail, rows, _columns(batch, head.attention_mask[rows], tail.attention_mask))


def _columns(batch: Batch, head: Tensor, tail: Tensor) -> Tensor:
    """For each column of the batch [R, T] the column of [R, t + t'] that holds the same token of a row, any on
    padding."""
    both = torch.cat([head, tail], 1)
    places = (~both.bool()).long().argsort(dim=1, stable=True)  # of each row's tokens, in order
    token = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    return places.gather(1, token)


def prefill_prompts(view: ModelView, prompts: Sequence[Prompt]) -> tuple[Batch, Tensor, Prefix]:
    """Run whole prompts, what they share once: their batch, final states [R, T, d] and the prefix that holds them."""
    if (found := alike(view, prompts)) is None:
        return prefill_apart(view, prompts)
    of_heads, begun = found.begin(view)
    of_tails, whole = found.go_on(view, begun)
    return found.batch, found.put(of_heads, of_tails), whole


def prefill_apart(view: ModelView, prompts: Sequence[Prompt]) -> tuple[Batch, Tensor, Prefix]:
    """As ``prefill_prompts``, each prompt from its beginning to its end."""
    batch = view.encode(prompts)
    return batch, *prefill(view, batch)
