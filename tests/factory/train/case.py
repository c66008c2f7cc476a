"""A small tuning, as a process of its own (one rank of a launcher, or one that is killed) or from a test; its outcome
as files.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import TrainerCallback

from factory import files
from factory.corpus.collate import Collator, Places
from factory.corpus.order import Order
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.model.view import ModelView
from factory.recipe.schema import LaunchSpec, TuneSpec
from factory.train import zero
from factory.train.loop import Answers, train
from tests.tiny import fresh_view

STEPS, BATCH = 4, 4
COLOURS = ("red", "green", "blue", "black")


def write_data(folder: Path, n: int = 24) -> Path:
    """Pictures of one colour with their name, and every third sample text alone, so that some micro-batches hold no
    image.
    """
    rows = []
    for i in range(n):
        colour = COLOURS[i % 4]
        turns = [{"from": "human", "value": f"What comes after {i}?"}, {"from": "gpt", "value": str(i + 1)}]
        row: dict[str, Any] = {"id": f"s{i}", "conversations": turns}
        if i % 3:
            Image.new("RGB", (48, 48), colour).save(folder / f"{i}.png")
            row |= {"image": f"{i}.png"}
            turns[0]["value"], turns[1]["value"] = "<image>\nWhat color " + "is this? " * (i % 4), f"It is {colour}"
        rows.append(row)
    files.write_jsonl(folder / "data.jsonl", rows)
    return folder / "data.jsonl"


class Breaking(nn.Module):
    """The usual objective, which goes wrong at its ``at``-th batch, in the process of ``rank``."""

    def __init__(self, view: ModelView, at: int, how: Callable[[Tensor], Tensor], rank: int = 0) -> None:
        super().__init__()
        self.answers, self.at, self.how = Answers(view), at, how
        self.here = rank == int(os.environ.get("RANK", "0"))

    def forward(self, **batch: Tensor) -> Tensor:
        self.at -= 1
        loss = self.answers(**batch)
        return self.how(loss) if self.at == 0 and self.here else loss


class Interrupted(Exception):
    """Stands for a kill, within a process."""


class Stop(TrainerCallback):
    """Ends the training after an optimiser step: with its process and without a farewell, or by an exception."""

    def __init__(self, step: int, kill: bool) -> None:
        self.step, self.kill = step, kill

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Interrupted


def stops_at(stage: str, step: int) -> Callable[[str, int], None]:
    """For ``progress.watched``: ends a stage after one of its steps."""

    def watcher(name: str, done: int) -> None:
        if (name, done) == (stage, step):
            raise Interrupted

    return watcher


def tuned(
    data: Path,
    folder: Path,
    tuner: dict[str, Any],
    launch: dict[str, Any],
    stop: int | None = None,
    kill: bool = False,
    steps: int = STEPS,
    data_workers: int = 0,
    objective: Callable[[ModelView], nn.Module] | None = None,
    log: list[dict[str, Any]] | None = None,
    **more: Any,
):
    """Losses and trained values of a tuning of the tiny model, with checkpoints in ``folder``; ``stop`` ends it after a
    step. What the training logged is added to ``log``.
    """
    spec = TuneSpec.model_validate(
        {
            "tuner": tuner,
            "data": {"path": str(data), "group_by_length": False, "workers": data_workers},
            "batch_size": BATCH,
            "learning_rate": 3e-3,
            **more,
        }
    )
    view = fresh_view()
    method = spec.method.make()
    torch.manual_seed(1)
    method.apply(view, spec.beside)
    source = ConversationFile(data, data.parent, data.parent / "index")
    order = Order(len(source), BATCH, 0)
    callbacks = [Stop(stop, kill)] if stop else []
    logged = train(
        view,
        method,
        Places(order, steps),
        Collator(view, source, 200, None, tasks=method.tasks),
        spec,
        LaunchSpec(**launch),
        steps,
        0,
        folder,
        callbacks,
        objective and objective(view),
    )
    if log is not None:
        log += logged
    return [row["loss"] for row in logged], zero.whole_values(method.trainable)


def main(cases: list[dict[str, Any]]) -> None:
    """Each case's losses and trained values, or why it was refused, under its ``folder``; from a launcher, of all ranks
    together.
    """
    for case in cases:
        if broken := case.pop("broken", None):  # at which batch of which rank
            case["objective"] = lambda view, at=broken: Breaking(view, at[0], lambda loss: loss * float("nan"), at[1])
        run = partial(tuned, Path(case.pop("data")), Path(case["folder"]))
        out = Path(case.pop("folder"))
        try:
            losses, values = run(**case)
        except Interrupted:
            forget()
            continue
        except UserError as error:
            files.write_text(out / f"told{int(os.environ.get('RANK', '0')) or ''}.txt", str(error))
            forget()
            continue
        if int(os.environ.get("RANK", "0")) == 0:
            files.write_json(out / "losses.json", losses)
            files.write_safetensors(out / "values.safetensors", values)
        forget()
    if torch.distributed.is_initialized():
        # Else its threads are still there when the process ends, which then may abort.
        torch.distributed.destroy_process_group()


def forget() -> None:
    """Let the next training of this process set up DeepSpeed anew."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state()
    GradientState._reset_state()
    unset_hf_deepspeed_config()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
