"""Pretraining of a vision tower by questions about pictures, before a language model is attached (as LLaVA starts from CLIP).

A question is a set of words, its embedding a query that pools the patch states by attention; a linear layer names the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from factory.model.view import ModelView
from factory.train.trainer import InOrder, arguments, last_checkpoint


class Pictures(Dataset):
    """(picture, words of the question, answer) of ``total`` drawn scenes."""

    def __init__(self, benchmark: Any, total: int) -> None:
        self.benchmark, self.total = benchmark, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> tuple[Any, tuple[str, ...], str]:
        return self.benchmark.picture(index, self.total)


class Questioned(nn.Module):
    """A vision tower and the head that is thrown away after pretraining."""

    def __init__(self, tower: nn.Module, layer: int, words: Sequence[str], answers: Sequence[str]) -> None:
        super().__init__()
        self.tower, self.layer = tower, layer
        self.words = {w: i for i, w in enumerate(words)}
        self.answers = {a: i for i, a in enumerate(answers)}
        width = tower.config.hidden_size
        self.queries = nn.EmbeddingBag(len(words), width, mode="sum")
        self.head = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, len(answers)))

    def forward(self, pixel_values: Tensor, words: Tensor, offsets: Tensor, labels: Tensor) -> dict[str, Tensor]:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        query = self.queries(words, offsets)
        attention = torch.softmax((states @ query[..., None]).squeeze(-1) / states.shape[-1] ** 0.5, -1)
        pooled = (attention[..., None] * states).sum(1)
        logits = self.head(torch.cat([pooled, query], -1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def collate(self, view: ModelView, rows: Sequence[tuple[Any, tuple[str, ...], str]]) -> dict[str, Tensor]:
        pixels = view.family.image_inputs(view.processor, [image for image, _, _ in rows])["pixel_values"]
        ids = [[self.words[w] for w in words] for _, words, _ in rows]
        offsets = torch.tensor([0, *map(len, ids)][:-1]).cumsum(0)
        labels = torch.tensor([self.answers[answer] for *_, answer in rows])
        return {"pixel_values": pixels, "words": torch.tensor([i for row in ids for i in row]), "offsets": offsets, "labels": labels}


def pretrain_vision(view: ModelView, benchmark: Any, steps: int, batch: int, learning_rate: float, warmup: int, seed: int, folder: Path) -> None:
    """Train the vision tower of ``view.model`` in place; gone on from the last checkpoint in ``folder`` after a kill."""
    torch.manual_seed(seed)
    layer = view.model.config.vision_feature_layer
    model = Questioned(view.vision_tower.requires_grad_(True).train(), layer, benchmark.question_words, benchmark.answers)
    args: TrainingArguments = arguments(folder, steps, batch, learning_rate, warmup, 0.05, 500, seed, view.device.type == "cpu")
    trainer = InOrder(model=model, args=args, train_dataset=Pictures(benchmark, steps * batch), data_collator=lambda rows: model.collate(view, rows))
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    view.vision_tower.eval().requires_grad_(False)

