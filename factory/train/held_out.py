"""What is looked at while a model is tuned and never learnt: the loss of samples held out, or a benchmark's score.

The Trainer's own evaluation, choice of the best checkpoint and resumption; ours are the loss, which is the mean over
all labelled tokens whatever the batches and ranks, and an end by patience that is the same after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from factory.corpus.labels import IGNORE
from factory.stopwatch import part
from factory.train.sam import drawing_again, random_state

LOSS, SCORE = "eval_loss", "eval_score"  # in a training's log


@dataclass
class HeldOut:
    """``every`` so many optimiser steps, and after the last, ``numbers`` of samples are ``read`` into batches of
    ``micro`` and the loss of their answers is taken; with ``score``, the model's score is taken too and decides.
    ``keep`` best: the checkpoint of the best look is the result, ``best`` its step. ``patience``: looks in a row
    without a better one that end the training; None goes on to its last step.
    """

    every: int
    numbers: Sequence[int]
    read: Callable[[Sequence[int]], dict[str, Tensor]]
    micro: int
    score: Callable[[], float] | None = None
    keep: Literal["best", "last"] = "best"
    patience: int | None = None
    best: int | None = None

    @property
    def decides(self) -> str:
        return SCORE if self.score else LOSS

    def arguments(self) -> dict[str, Any]:
        """The Trainer's arguments. A look's checkpoint is kept with it, else the best could not be gone back to."""
        best = self.keep == "best"
        return {
            "eval_strategy": "steps",
            "eval_steps": self.every,
            "metric_for_best_model": self.decides,
            "greater_is_better": self.decides == SCORE,
            "load_best_model_at_end": best,
        } | ({"save_steps": self.every} if best else {})

    def over(self, log: Sequence[Mapping[str, Any]]) -> bool:
        """Whether so many looks of a training's ``log`` have come after the best one that it ends."""
        sign = -1 if self.decides == SCORE else 1
        values = [sign * row[self.decides] for row in log if self.decides in row]
        return (
            self.patience is not None and bool(values) and len(values) - 1 - values.index(min(values)) >= self.patience
        )

    def look(self, trainer: Trainer) -> dict[str, float]:
        """The loss in nats a labelled token, and the score, of the model as it stands; all ranks call it."""
        trainer.model.eval()
        found = {}
        with torch.no_grad(), drawing_again(random_state()), trainer.compute_loss_context_manager():
            if len(self.numbers):
                with part("look", ""):
                    found[LOSS] = self._loss(trainer)
            if self.score:
                with part("score", ""):
                    found[SCORE] = self.score()
        return found

    def _loss(self, trainer: Trainer) -> float:
        accelerator = trainer.accelerator
        ranks, own = accelerator.num_processes, accelerator.process_index
        total = torch.zeros(2, dtype=torch.float64, device=trainer.args.device)
        for i in range(0, len(self.numbers), ranks * self.micro):
            mine = self.numbers[i + own * self.micro : i + (own + 1) * self.micro]
            batch = self.read(mine or self.numbers[:1])  # every rank runs as many batches, as ZeRO-3 wants it
            if not mine:
                batch["labels"] = torch.full_like(batch["labels"], IGNORE)
            batch = {name: t.to(trainer.args.device) for name, t in batch.items()}
            labels = batch["labels"]
            targets = labels[:, 1:] if labels.ndim == 2 else labels  # of tokens, or one a sample
            total += torch.stack([trainer.model(**batch).double(), (targets != IGNORE).sum().double()])
        nats, tokens = accelerator.reduce(total, "sum").tolist()
        return nats / max(tokens, 1.0)


class Looking(TrainerCallback):
    """Has the last step looked at too, and ends a training whose patience is over."""

    def __init__(self, held: HeldOut) -> None:
        self.held = held

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.held.over(state.log_history):
            control.should_training_stop = control.should_save = True
