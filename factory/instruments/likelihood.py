"""How likely a model finds answers that are given with their prompts, over the strengths of a steering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.model.encode import Batch
from factory.model.steps import Step
from factory.model.view import ModelView
from factory.steer import Steering
from factory.steer.sweep import final_states, run_trunk


def answer_logprobs(view: ModelView, batch: Batch, hidden: Tensor) -> Tensor:
    """log p(answer | prompt) [B] of the answers that end the rows of ``batch``, from final states [B, T, d]: the sum
    over the answer's tokens, an end token not among them. An answer of no token has 0.
    """
    row, column = Step(batch.roles).answer.nonzero(as_tuple=True)
    each = view.logits(hidden[row, column - 1]).log_softmax(-1)
    said = each.gather(-1, batch.input_ids[row, column][:, None])[:, 0]
    return said.new_zeros(batch.size).index_add(0, row, said)


@torch.no_grad()
def likelihoods(
    view: ModelView, prompts: Sequence[Prompt], layer: int, steering: Steering | None, strengths: Sequence[float]
) -> Tensor:
    """p(answer | prompt) [S, B] of answered ``prompts`` at every strength of a ``steering``; without one all alike.

    The blocks up to ``layer`` run once; each strength costs those above it where the steering acts in that block alone.
    Raises ``UserError`` for a prompt that no answer ends.
    """
    if not all(prompt.answered for prompt in prompts):
        raise UserError("the probability of an answer needs prompts that each end with one")
    batch = view.encode(prompts)
    trunk = run_trunk(view, batch, layer)
    cells = [steering and replace(steering, strength=strength) for strength in strengths]
    found = [answer_logprobs(view, batch, final_states(view, trunk, cell)) for cell in cells]
    return torch.stack(found).exp().cpu()
