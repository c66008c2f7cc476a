"""Answers from the middle of a prompt on: what comes before is run once, the rest again and again under some
intervention.

Two interventions: steering (``factory.steer``), and attention cut between token roles while the answer is generated
(Instruction Anchor, eq. 3 in a generation: figure 3c and table 2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.diagnose import attention
from factory.errors import UserError
from factory.instruments.branch import Stem, tail_of
from factory.instruments.focus import visible
from factory.instruments.pathways import first_target, role_sets
from factory.model.prefix import Prefix, Step, announced, at_last, decode_texts, greedy
from factory.model.view import ModelView


@dataclass(frozen=True)
class Rest:
    """Prompts that lie in a cache up to ``roles`` [B, t], and what follows: the decoder's input ``embeds`` [B, t, d],
    images in place, its ``positions`` [B, t] or [axes, B, t] and ``mask`` [B, t], padded right; ``directions``: which
    of the ``sources`` each is asked to follow.
    """

    prefix: Prefix
    embeds: Tensor
    positions: Tensor
    mask: Tensor
    roles: Tensor
    directions: Sequence[str]
    sources: Sources = PICTURE_AND_TEXT

    def pick(self, rows: Sequence[int]) -> Rest:
        at = torch.tensor(rows, device=self.roles.device)
        positions = self.positions.index_select(-2, at)
        return Rest(
            self.prefix.fork(at),
            self.embeds[at],
            positions,
            self.mask[at],
            self.roles[at],
            [self.directions[i] for i in rows],
            self.sources,
        )


def held_back(
    view: ModelView,
    stem: Stem,
    targets: Collection[str],
    directions: Sequence[str],
    sources: Sources = PICTURE_AND_TEXT,
) -> Rest:
    """Prompts that were run, held back from their first token of ``targets`` on. Raises ``UserError`` as ``tail_of``
    does.
    """
    batch, whole = stem.batch, stem.prefix
    tail = tail_of(view, stem, first_target(batch.roles, batch.attention_mask, targets, directions, sources))
    rows = torch.arange(len(tail.at), device=tail.at.device)[:, None]
    prefix = Prefix(whole.cache, tail.before.long(), whole.roles * tail.before, whole.next_position - tail.mask.sum(-1))
    positions = batch.position_ids.gather(-1, tail.at.expand(*batch.position_ids.shape[:-1], -1))
    return Rest(
        prefix,
        stem.embeds[rows, tail.at],
        positions,
        tail.mask.long(),
        whole.roles.gather(-1, tail.at) * tail.mask,
        directions,
        sources,
    )


@torch.no_grad()
def answers(view: ModelView, rest: Rest, max_new_tokens: int, among: Tensor | None = None) -> list[str]:
    """Greedy answers, of one of the tokens ``among`` where the benchmark forces a choice; the prefix stays as it is."""
    prefix, full = rest.prefix.fork(), torch.cat([rest.prefix.mask, rest.mask], -1)
    seen = view.family.attention_mask(view.decoder, full, rest.mask.shape[1])
    with announced(view, Step(rest.roles)):
        out = view.core(
            inputs_embeds=rest.embeds,
            attention_mask=seen,
            position_ids=rest.positions,
            past_key_values=prefix.cache,
            use_cache=True,
        )
    longer = Prefix(
        out.past_key_values, full, torch.cat([prefix.roles, rest.roles], -1), prefix.next_position + rest.mask.sum(-1)
    )
    logits = view.logits(at_last(out.last_hidden_state.to(view.device), rest.mask))
    return decode_texts(view, greedy(view, longer, logits, max_new_tokens, among))


def deep_layers(depth: int, layers: tuple[int, int] | None) -> range:
    """From the first of ``layers`` to the last, both included; null is the upper half. Raises ``UserError`` where the
    model has no such layer.
    """
    first, last = layers or (depth // 2, depth - 1)
    if not 0 <= first <= last < depth:
        raise UserError(
            f"layers [{first}, {last}]: the model has layers 0 to {depth - 1}, and the first may not come after the"
            " last"
        )
    return range(first, last + 1)


def around(depth: int, window: int) -> list[range]:
    """The layers of a window centred at each layer, cut off at the ends."""
    return [range(max(0, centre - (window - 1) // 2), min(depth, centre + window // 2 + 1)) for centre in range(depth)]


@contextmanager
def severed(view: ModelView, rest: Rest, pathway: str, layers: Collection[int]) -> Iterator[None]:
    """No token of the pathway's target sees one of its source in ``layers``, in the rest of the prompt and in the
    answer; the target "generated" is the last prompt token and all of the answer. A token never loses sight of itself.

    Raises ``UserError`` at the end for a model whose attention cannot be replaced, so that nothing was cut.
    """
    source, target = pathway.split("->")
    roles = torch.cat([rest.prefix.roles, rest.roles], -1)
    hidden = role_sets(roles, torch.cat([rest.prefix.mask, rest.mask], -1), rest.directions, rest.sources)[source]
    in_prompt = role_sets(rest.roles, rest.mask, rest.directions, rest.sources)[target]
    reached = set()

    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        reached.add(module.layer_idx)
        seen = visible(module, q, k, mask)
        if module.layer_idx in layers:
            answering = view.step is not None and view.step.generated
            to = torch.full_like(in_prompt[:, :1], target == "generated") if answering else in_prompt
            at = torch.arange(k.shape[2], device=k.device)
            own = at == at[-q.shape[2] :, None]
            of = F.pad(hidden, (0, k.shape[2] - hidden.shape[1]))
            seen = seen & ~((to[:, None, :, None] & of[:, None, None, :]).to(k.device) & ~own)
        return sdpa_attention_forward(module, q, k, v, seen, **{**options, "is_causal": False})

    with attention(view, attend):
        yield
    if len(reached) != view.depth:
        raise UserError(
            f"the attention of {type(view.decoder).__name__} cannot be replaced, so its edges cannot be cut"
        )
