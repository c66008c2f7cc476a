"""Answers from the middle of a prompt on: what comes before is run once, the rest again and again under some intervention.

Two interventions: steering (``factory.steer``), and attention cut between token roles while the answer is generated (Instruction
Anchor, eq. 3 in a generation: figure 3c and table 2).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.diagnose import Query, attention, hold_back
from factory.diagnose.focus import visible
from factory.diagnose.roles import first_target, role_sets
from factory.errors import UserError
from factory.model.encode import Batch
from factory.model.prefix import Prefix, at_last, decode_texts, extend, greedy, prefill
from factory.model.view import ModelView


@dataclass(frozen=True)
class Rest:
    """Prompts that lie in a cache up to ``query``, and what follows; ``directions``: which modality each is asked to follow."""

    prefix: Prefix
    query: Query
    directions: Sequence[str]

    def pick(self, rows: Sequence[int]) -> Rest:
        at = torch.tensor(rows, device=self.query.ids.device)
        return Rest(self.prefix.fork(at), self.query.pick(at), [self.directions[i] for i in rows])


@torch.no_grad()
def prefilled(view: ModelView, batch: Batch, targets: Collection[str], directions: Sequence[str]) -> Rest:
    """Run whole prompts, and hold back what comes from the first token of ``targets`` on."""
    return held_back(view, batch, *prefill(view, batch), targets, directions)


def held_back(view: ModelView, batch: Batch, hidden: Tensor, whole: Prefix, targets: Collection[str], directions: Sequence[str]) -> Rest:
    """Prompts in a cache, with their final states [B, T, d], held back from their first token of ``targets`` on."""
    first = first_target(batch.roles, batch.attention_mask, targets, directions)
    columns = torch.arange(batch.roles.shape[1], device=first.device)
    prefix, query, _ = hold_back(view, batch.input_ids, hidden, whole, (columns >= first[:, None]) & batch.attention_mask.bool())
    return Rest(prefix, query, directions)


@torch.no_grad()
def answers(view: ModelView, rest: Rest, max_new_tokens: int) -> list[str]:
    """Greedy answers; the prefix stays as it is."""
    hidden, longer = extend(view, rest.prefix.fork(), *rest.query)
    return decode_texts(view, greedy(view, longer, view.logits(at_last(hidden, rest.query.mask)), max_new_tokens))


def deep_layers(depth: int, layers: tuple[int, int] | None) -> range:
    """From the first of ``layers`` to the last, both included; null is the upper half. Raises ``UserError`` where the model has no such layer."""
    first, last = layers or (depth // 2, depth - 1)
    if not 0 <= first <= last < depth:
        raise UserError(f"layers [{first}, {last}]: the model has layers 0 to {depth - 1}, and the first may not come after the last")
    return range(first, last + 1)


@contextmanager
def severed(view: ModelView, rest: Rest, pathway: str, layers: Collection[int]) -> Iterator[None]:
    """No token of the pathway's target sees one of its source in ``layers``, in the rest of the prompt and in the answer; the target
    "generated" is the last prompt token and all of the answer. A token never loses sight of itself.

    Raises ``UserError`` for a model whose prompt tokens see what follows them, and for one whose attention cannot be replaced.
    """
    if view.family.bidirectional_prompt:
        raise UserError(f"in {type(view.decoder).__name__} prompt tokens see what follows them: its attention cannot be cut by role over a shared prefix")
    source, target = pathway.split("->")
    roles = torch.cat([rest.prefix.roles, rest.query.roles], -1)
    hidden = role_sets(roles, torch.cat([rest.prefix.mask, rest.query.mask], -1), rest.directions)[source]
    in_prompt = role_sets(rest.query.roles, rest.query.mask, rest.directions)[target]
    reached = set()

    def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> tuple[Tensor, None]:
        reached.add(module.layer_idx)
        seen = visible(module, q, k, mask)
        if module.layer_idx in layers:
            answering = view.step is not None and view.step.generated
            to = torch.full_like(in_prompt[:, :1], target == "generated") if answering else in_prompt
            at = torch.arange(k.shape[2], device=k.device)
            own = at == at[-q.shape[2] :, None]
            of = torch.nn.functional.pad(hidden, (0, k.shape[2] - hidden.shape[1]))
            seen = seen & ~(to[:, None, :, None] & of[:, None, None, :] & ~own)
        return sdpa_attention_forward(module, q, k, v, seen, **{**options, "is_causal": False})

    with attention(view, attend):
        yield
    if reached and len(reached) != view.depth:
        raise UserError(f"the attention of {type(view.decoder).__name__} cannot be replaced, so its edges cannot be cut")
