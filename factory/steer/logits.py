"""Running a decoding-time method: prompts and their altered copies are rows of one pass, and their logits choose one token for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factory.data.prompt import Prompt
from factory.model.prefix import at_last, decode_texts, greedy, prefill
from factory.model.view import ModelView
from factory.steer.base import Direction, LogitsMethod


@torch.no_grad()
def contrasted(
    view: ModelView, method: LogitsMethod, prompts: Sequence[Prompt], direction: Direction, strengths: Sequence[float], max_new_tokens: int
) -> list[list[str]]:
    """Greedy answers to ``prompts`` at each strength; the prompts are run once for all strengths.

    Cost: as many rows more as there are copies, in the prompt's pass and for every answer token.
    """
    copies = list(zip(*(method.copies(p, direction) for p in prompts), strict=True))
    blocks = 1 + len(copies)
    batch = view.encode([*prompts, *(p for copy in copies for p in copy)])
    batch.images = method.images(batch.images, direction, blocks)
    with method.running(view, direction, blocks):
        hidden, prefix = prefill(view, batch)
        first = view.logits(at_last(hidden, batch.attention_mask))
        answers = []
        for strength in strengths:

            def token(logits: Tensor, strength: float = strength) -> Tensor:
                own, *others = logits.chunk(blocks)
                return method.combine(own, torch.stack(others), direction, strength).argmax(-1).repeat(blocks)

            tokens = greedy(view, prefix.fork(), first, max_new_tokens, token)
            answers.append(decode_texts(view, tokens[: len(prompts)]))
    return answers


def contrastive(own: Tensor, others: Tensor, strength: float, plausible: float) -> Tensor:
    """(1 + k a) z - a (z'_1 + .. + z'_k) for strength a, among tokens at least ``plausible`` times as likely as the likeliest.

    ``own`` z [B, V], ``others`` z' [k, B, V]. (VCD eq. 3 and 5 with k = 1; CausalMM with k = 1 or 2.)
    """
    mixed = (1 + len(others) * strength) * own - strength * others.sum(0)
    likely = own >= own.amax(-1, keepdim=True) + torch.log(own.new_tensor(plausible))
    return mixed.masked_fill(~likely, -torch.inf)
