"""What no training should go on through unsaid: a loss or gradient that is no number, and parts that learn nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from factory.errors import UserError
from factory.terminal import warn
from factory.train import checkpoint

PATIENCE = 10  # optimiser steps without any gradient, until that is told


class Finite(TrainerCallback):
    """Ends a training at the first loss or gradient norm that is no finite number, before anything of it is saved.

    Looks at what the Trainer reads from the device for its log, and has it read before each save: the summed loss
    between two readings holds what was not finite at any step of them. No further waiting for the device.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log |= control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
        """Raises ``UserError``."""
        for key, what in (("loss", "loss"), ("grad_norm", "gradient's norm")):
            if not math.isfinite(logs.get(key, 0.0)):
                raise UserError(diverged(f"the {what} is {logs[key]} at step {state.global_step}", args.output_dir))


def diverged(why: str, folder: str) -> str:
    """That a training was stopped, what is left of it, and what to do."""
    kept = checkpoint.present(Path(folder))
    left = f"the last good checkpoint is kept, {kept[0]}" if kept else "no checkpoint had been written yet"
    return (
        f"{why}: stopped, and {left}. Start afresh with a lower learning rate or a longer warm-up (and name=OTHER), and"
        " look at the data of these steps"
    )


class Learning(TrainerCallback):
    """Tells of each part, ``parts`` by name, that has had no gradient but zero: nothing of it is learnt.

    A part is looked at until its first gradient, most often in the first step, which waits for the device once.
    Gradients that DeepSpeed keeps for itself, or has used up already, are told from their common norm alone, and where
    that is not known either, nothing is said.
    """

    def __init__(self, parts: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.parts, self.silent, self.steps, self.seen = parts, list(parts), 0, False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        before = len(self.silent)
        self.silent = [n for n in self.silent if not any(p.grad is not None and p.grad.any() for p in self.parts[n])]
        self.seen = self.seen or len(self.silent) < before

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
        if "loss" in logs and not self.seen and logs.get("grad_norm") != 0:
            self.silent = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1
        if self.steps == PATIENCE < state.max_steps:
            self._tell(args)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell(args)

    def _tell(self, args: Any) -> None:
        for name in self.silent if args.should_save and self.steps else ():
            warn(
                f"warning: {name} has had no gradient but zero in {self.steps} steps, so nothing of it is learnt (a"
                " connector or vision tower learns from samples with a picture alone)"
            )
