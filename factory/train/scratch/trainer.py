"""Full training of a model on a benchmark's lessons, gone on with by itself after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from factory.model.view import ModelView
from factory.recipe.schema import TrainSpec
from factory.train.resume import OneDevice, Resuming
from factory.train.scratch.lessons import IGNORE, LessonCollator, LessonStream

FLOOR = 0.03


class LessonTrainer(Resuming):
    """Answer loss plus ``text_weight`` times the loss on the prompt's own words."""

    def __init__(self, text_weight: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.text_weight = text_weight

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        labels, words = inputs.pop("labels"), inputs.pop("text_labels")
        out = model(**inputs)
        logits = out.logits[:, :-1].float().transpose(1, 2)
        loss = per_row_loss(logits, labels[:, 1:]).mean()
        if self.text_weight:
            loss = loss + self.text_weight * F.cross_entropy(logits, words[:, 1:], ignore_index=IGNORE)
        return (loss, out) if return_outputs else loss


def per_row_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of each row's labelled tokens [B]: a long answer weighs no more than a short one."""
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return loss.sum(-1) / (labels != IGNORE).sum(-1).clamp_min(1)


def arguments(
    folder: Path,
    steps: int,
    batch: int,
    learning_rate: float,
    warmup: int,
    weight_decay: float,
    save_every: int,
    seed: int,
    cpu: bool,
) -> TrainingArguments:
    return OneDevice(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        warmup_steps=warmup,
        weight_decay=weight_decay,
        adam_beta2=0.98,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": FLOOR},
        save_steps=save_every,
        logging_steps=50,
        logging_nan_inf_filter=False,
        report_to="none",
        seed=seed,
        remove_unused_columns=False,
        use_cpu=cpu,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


def train_lessons(
    view: ModelView,
    lessons: LessonStream,
    spec: TrainSpec,
    steps: int,
    seed: int,
    folder: Path,
    watching: Sequence[TrainerCallback] = (),
) -> None:
    """Train every parameter of ``view.model`` in place on ``lessons``; gone on from the newest whole checkpoint in
    ``folder`` after a kill. ``watching`` is told of each step.
    """
    view.model.requires_grad_(True).train()
    cpu = view.device.type == "cpu"
    args = arguments(
        folder, steps, spec.batch_size, spec.learning_rate, spec.warmup, spec.weight_decay, spec.save_every, seed, cpu
    )
    trainer = LessonTrainer(
        model=view.model,
        args=args,
        train_dataset=lessons,
        data_collator=LessonCollator(view),
        text_weight=spec.text_weight,
        callbacks=list(watching),
    )
    trainer.go_on()
    view.model.eval().requires_grad_(False)
