"""Full training of a model on a benchmark's lessons: the Hugging Face Trainer, resumed from its last checkpoint by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from factory.model.view import ModelView
from factory.recipe.schema import TrainSpec
from factory.train.lessons import IGNORE, Collator, Lessons

FLOOR = 0.03


class LessonTrainer(Trainer):
    """Answer loss plus ``text_weight`` times the loss on the prompt's own words; lessons are taken in order."""

    def __init__(self, *args: Any, text_weight: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.text_weight = text_weight

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

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


def train(view: ModelView, benchmark: Any, spec: TrainSpec, seed: int, folder: Path) -> None:
    """Train every parameter of ``view.model`` in place; checkpoints lie in ``folder`` and are gone on from after a kill."""
    if spec.threads:
        torch.set_num_threads(spec.threads)
    view.model.requires_grad_(True).train()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=spec.steps, per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate, warmup_steps=spec.warmup, weight_decay=spec.weight_decay, adam_beta2=0.98,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": FLOOR},
        save_steps=spec.save_every, save_total_limit=1, logging_steps=50, report_to="tensorboard",
        seed=seed, remove_unused_columns=False, use_cpu=view.device.type == "cpu", dataloader_num_workers=0, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = LessonTrainer(
        model=view.model, args=arguments, train_dataset=Lessons(benchmark, spec.batch_size, spec.steps), data_collator=Collator(view),
        text_weight=spec.text_weight,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    view.model.eval().requires_grad_(False)
