"""Running a decoding-time method: prompts and their altered copies are rows of one pass, and their logits choose one
token for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from factory.data.prompt import Prompt
from factory.model.encode import Batch
from factory.model.prefix import Heard, at_last, decode_texts, greedy, prefill
from factory.model.view import ModelView
from factory.steer.base import Direction, LogitsMethod
from factory.stopwatch import further


@torch.no_grad()
def contrasted(
    view: ModelView,
    method: LogitsMethod,
    prompts: Sequence[Prompt],
    direction: Direction,
    strengths: Sequence[float],
    max_new_tokens: int,
    among: Tensor | None = None,
    heard: Heard | None = None,
) -> list[list[str]]:
    """Greedy answers to ``prompts`` at each strength; where the method allows it the prompts are run once for all
    strengths.

    ``among`` and ``heard``: as in ``greedy``, the prompts before their copies. Cost: as many rows more as there are
    copies, in the prompt's pass and for every answer token.
    """
    batch, blocks = _batch(view, method, prompts, direction)
    answers: list[list[str]] = []
    for group in [list(strengths)] if method.shares_prompt else [[s] for s in strengths]:
        with further(answers), method.running(view, direction, blocks, group[0]):
            hidden, prefix = prefill(view, batch)
            first = view.logits(at_last(hidden, batch.attention_mask))
            for strength in group:
                pick = _one_for_all(method, direction, blocks, strength)
                with further(answers):
                    tokens = greedy(view, prefix.fork(), first, max_new_tokens, among, pick, heard)
                    answers.append(decode_texts(view, tokens[: len(prompts)]))
    return answers


@torch.no_grad()
def first_logits(
    view: ModelView, method: LogitsMethod, prompts: Sequence[Prompt], direction: Direction, strength: float
) -> Tensor:
    """The logits [B, V] that the first token of each answer is chosen from."""
    batch, blocks = _batch(view, method, prompts, direction)
    with method.running(view, direction, blocks, strength):
        hidden, _ = prefill(view, batch)
        own, others = view.logits(at_last(hidden, batch.attention_mask)).unflatten(0, (blocks, -1)).tensor_split([1])
    return method.combine(own[0], others, direction, strength)


def _batch(view: ModelView, method: LogitsMethod, prompts: Sequence[Prompt], direction: Direction) -> tuple[Batch, int]:
    """The prompts and their copies as rows of one batch, and how many blocks of rows these are."""
    copies = list(zip(*(method.copies(p, direction) for p in prompts), strict=True))
    batch = view.encode([*prompts, *(p for copy in copies for p in copy)])
    batch.images = method.images(batch.images, direction, 1 + len(copies))
    return batch, 1 + len(copies)


def _one_for_all(
    method: LogitsMethod, direction: Direction, blocks: int, strength: float
) -> Callable[[Tensor], Tensor]:
    """Picks the next token of each prompt from the logits of all its rows, and gives it to all of them."""

    def pick(logits: Tensor) -> Tensor:
        own, others = logits.unflatten(0, (blocks, -1)).tensor_split([1])
        return method.combine(own[0], others, direction, strength).argmax(-1).repeat(blocks)

    return pick


def contrastive(own: Tensor, others: Tensor, strength: float, plausible: float) -> Tensor:
    """(1 + k a) z - a (z'_1 + .. + z'_k) for strength a, among tokens at least ``plausible`` times as likely as the
    likeliest.

    ``own`` z [B, V], ``others`` z' [k, B, V]. (VCD eq. 3 and 5 with k = 1; CausalMM with k = 1 or 2.)
    """
    mixed = (1 + len(others) * strength) * own - strength * others.sum(0)
    likely = own >= own.amax(-1, keepdim=True) + torch.log(own.new_tensor(plausible))
    return mixed.masked_fill(~likely, -torch.inf)
