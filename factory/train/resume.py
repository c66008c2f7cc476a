"""The Hugging Face Trainer as every training here uses it: data in order, checkpoints whole, nothing unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerState, TrainingArguments

from factory import files
from factory.errors import UserError
from factory.stopwatch import part
from factory.train import checkpoint
from factory.train.marks import Cycles
from factory.train.watch import Finite, diverged

WEIGHTS, STATE = "trained.safetensors", "trainer_state.json"


class OneDevice(TrainingArguments):
    """Of a process that has one GPU, or a model that is spread over several: left to itself the Trainer takes every GPU
    it sees, with a batch for each, and moves whatever it is given onto the first."""

    n_gpu = 1
    place_model_on_device = False  # accelerate does it, and leaves a spread model alone


class Resuming(Trainer):
    """A trainer that takes its data in order (shuffling is the data's own business, so any step can be gone on from)
    and goes on from the newest whole checkpoint of its folder, of which it keeps the newest ``keep``, and the best.

    A subclass whose checkpoints hold less than the model's whole state says so in ``weights`` and ``fill``.
    """

    about: Mapping[str, Any] = {}  # what a checkpoint's manifest says beside the step
    keep = 1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_callback(Finite())
        self.add_callback(Cycles())

    def go_on(self) -> None:
        """Train to the end, from the newest whole checkpoint where there is one."""
        newest = self._agreed(checkpoint.newest(Path(self.args.output_dir)) if self.args.should_save else None)
        if newest:
            with checkpoint.read_as_data(newest):
                state = TrainerState.load_from_json(str(newest / STATE))
            if self.over(state):
                self.args.max_steps = state.global_step
        self.train(resume_from_checkpoint=str(newest) if newest else None)

    def over(self, state: TrainerState) -> bool:
        """Whether a training that has come to ``state`` ends there, before its last step."""
        return False

    def weights(self) -> Mapping[str, Tensor]:
        """What is trained, by name; all ranks call it."""
        return self.model.state_dict()

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the model what ``weights`` gave."""
        self.model.load_state_dict(tensors)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        values = self.weights()
        if odd := [name for name, value in values.items() if not value.isfinite().all()]:
            raise UserError(diverged(f"{odd[0]} has come to hold what is no finite number", self.args.output_dir))
        if self.args.should_save:
            files.write_safetensors(Path(output_dir or self.args.output_dir) / WEIGHTS, values)

    def _agreed(self, newest: Path | None) -> Path | None:
        """The checkpoint that the first rank found, on every rank."""
        if self.args.world_size == 1:
            return newest
        step = int(newest.name.rpartition("-")[2]) if newest else -1
        step = int(broadcast(torch.tensor([step], device=self.args.device))[0])
        return Path(self.args.output_dir) / checkpoint.folder_name(step) if step >= 0 else None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        with part("read", ""):
            return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with part("pass", ""):
            return super().training_step(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        with part("clip", ""):
            return super()._clip_grad_norm(model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with part("checkpoint", ""):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._seal()

    def _seal(self) -> None:
        folder = Path(self.args.output_dir)
        current = folder / checkpoint.folder_name(self.state.global_step)
        checkpoint.seal(current, {"step": self.state.global_step, **self.about})
        best = folder / checkpoint.folder_name(self.state.best_global_step or 0)
        for old in checkpoint.present(folder)[self.keep :]:
            if old != best:
                checkpoint.remove(old)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        steps = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)  # a checkpoint's own intervals would stay in force
        return steps

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with checkpoint.read_as_data(resume_from_checkpoint):
            self.fill(files.read_safetensors(Path(resume_from_checkpoint) / WEIGHTS))

    def _load_optimizer_and_scheduler(self, checkpoint_: str | None) -> None:
        with checkpoint.read_as_data(checkpoint_) if checkpoint_ else nullcontext():
            super()._load_optimizer_and_scheduler(checkpoint_)

    def _load_rng_state(self, checkpoint_: str | None) -> None:
        with checkpoint.read_as_data(checkpoint_) if checkpoint_ else nullcontext():
            super()._load_rng_state(checkpoint_)
