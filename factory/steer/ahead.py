"""Looking ahead: what the prompts of a call would be answered, had a block given something else, or with a modality hidden."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from factory.model.masks import without
from factory.model.prefix import at_last, new_cache
from factory.model.replay import Call, replay
from factory.model.view import ModelView


@dataclass(frozen=True)
class Ahead:
    """Runs of the decoder on prompts with ``mask`` [R, T], called as ``call`` says, to float32 next-token logits [R, vocabulary].

    ``unsteered`` is a block in which no steering acts.
    """

    view: ModelView
    layer: int
    call: Call
    mask: Tensor
    unsteered: Callable[[], AbstractContextManager[None]] = nullcontext

    def above(self, h: Tensor) -> Tensor:
        """Had block ``layer`` given ``h`` [R, T, d]: one run of the blocks above it."""
        return self._logits(self.layer, self.call, h)

    def hiding(self, hidden: Tensor, h: Tensor) -> Tensor:
        """With tokens ``hidden`` [R, T] unseen by all others, in every block: one run of the whole decoder. ``h``: any output of a block."""
        with self.unsteered():
            return self._logits(-1, {**self.call, "attention_mask": without(self.call.get("attention_mask"), hidden)}, h)

    @torch.no_grad()
    def _logits(self, layer: int, call: Call, h: Tensor) -> Tensor:
        final = replay(self.view, layer, call, h, new_cache()).to(self.view.device)
        return self.view.logits(at_last(final, self.mask))
