"""What the time of a training goes into, marked for whoever holds a stopwatch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from factory.stopwatch import chunk, part

CYCLES = "cycle"


class Cycles(TrainerCallback):
    """A chunk for every stretch that ends with an optimiser step, the first from the training's beginning, and one for
    what comes after the last; what follows a step, its log, its look and its checkpoint, lies in the next stretch. The
    optimiser's own step is a part.
    """

    def __init__(self) -> None:
        self.cycle, self.update = ExitStack(), ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._turn(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.update.enter_context(part("update", ""))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.update.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._turn(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.cycle.close()

    def _turn(self, step: int) -> None:
        self.cycle.close()
        self.cycle.enter_context(chunk(CYCLES, str(step)))
