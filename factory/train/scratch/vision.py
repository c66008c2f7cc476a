"""Pretraining by questions about pictures: of a vision tower alone (as LLaVA starts from CLIP), then of the connector.

A question is a set of words, its embedding a query that pools the patch states by attention. A linear layer names the
answer while the tower is trained; the connector is trained, all else frozen, so that the pooled image tokens point at
the embedding of the answer's word among the answers of the same kind: the language model is handed words it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback

from factory.benchmark import WithPictures
from factory.model.view import ModelView
from factory.recipe.schema import TrainSpec
from factory.train.resume import Resuming
from factory.train.scratch.trainer import arguments


class Pictures(Dataset):
    """(picture, words of the question, answer) of ``total`` drawn scenes."""

    def __init__(self, benchmark: WithPictures, total: int) -> None:
        self.benchmark, self.total = benchmark, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> tuple[Any, tuple[str, ...], str]:
        return self.benchmark.picture(index, self.total)


class Questioned(nn.Module):
    """A vision tower and the head that is thrown away after pretraining."""

    def __init__(self, tower: PreTrainedModel, layer: int, words: Sequence[str], answers: Sequence[str]) -> None:
        super().__init__()
        self.tower, self.layer = tower, layer
        self.words = {w: i for i, w in enumerate(words)}
        self.answers = {a: i for i, a in enumerate(answers)}
        width = tower.config.hidden_size
        self.queries = nn.EmbeddingBag(len(words), width, mode="sum")
        self.head: nn.Module = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, len(answers)))

    def forward(self, pixel_values: Tensor, words: Tensor, offsets: Tensor, labels: Tensor) -> dict[str, Tensor]:
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        pooled = (self.attention(states, words, offsets)[..., None] * states).sum(1)
        logits = self.head(torch.cat([pooled, self.queries(words, offsets)], -1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    def attention(self, states: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
        """Weights [B, patches] of the question's query over patch states [B, patches, width]."""
        query = self.queries(words, offsets)
        return torch.softmax((states @ query[..., None]).squeeze(-1) / states.shape[-1] ** 0.5, -1)

    def collate(self, view: ModelView, rows: Sequence[tuple[Any, tuple[str, ...], str]]) -> dict[str, Tensor]:
        pixels = view.family.image_inputs(view.processor, [image for image, _, _ in rows])["pixel_values"]
        ids = [[self.words[w] for w in words] for _, words, _ in rows]
        offsets = torch.tensor([0, *map(len, ids)][:-1]).cumsum(0)
        labels = torch.tensor([self.answers[answer] for *_, answer in rows])
        return {
            "pixel_values": pixels,
            "words": torch.tensor([i for row in ids for i in row]),
            "offsets": offsets,
            "labels": labels,
        }


class ConnectorProbe(Questioned):
    """The head of the connector's pretraining: image tokens against the word embeddings of the answers."""

    names: Tensor  # word embedding of each answer [answers, d]
    same_kind: Tensor  # [answers, answers] booleans

    def __init__(self, view: ModelView, words: Sequence[str], kinds: Sequence[Sequence[str]]) -> None:
        answers = [answer for kind in kinds for answer in kind]
        super().__init__(view.vision_tower, view.model.config.vision_feature_layer, words, answers)
        self.head, self.connector = nn.Identity(), view.connector.requires_grad_(True)
        ids = [view.tokenizer.encode(" " + answer, add_special_tokens=False)[0] for answer in answers]
        self.register_buffer("names", view.model.get_input_embeddings().weight[ids].clone())
        kind_of = torch.tensor([k for k, kind in enumerate(kinds) for _ in kind])
        self.register_buffer("same_kind", kind_of[:, None] == kind_of)

    def forward(self, pixel_values: Tensor, words: Tensor, offsets: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            states = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer][:, 1:]
        pooled = (self.attention(states, words, offsets)[..., None] * self.connector(states)).sum(1)
        logits = (pooled @ self.names.T).masked_fill(~self.same_kind[labels], float("-inf"))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def pretrain_vision(
    view: ModelView,
    benchmark: WithPictures,
    spec: TrainSpec,
    seed: int,
    folder: Path,
    watching: Sequence[TrainerCallback] = (),
) -> None:
    """Train the vision tower of ``view.model`` in place; gone on from the newest whole checkpoint in ``folder``
    after a kill. ``watching`` is told of each step.
    """
    torch.manual_seed(seed)
    layer = view.model.config.vision_feature_layer
    model = Questioned(
        view.vision_tower.requires_grad_(True).train(),
        layer,
        benchmark.question_words,
        list(chain(*benchmark.answers)),
    )
    _train(view, benchmark, model, spec, spec.vision_steps, seed, folder, watching)
    view.vision_tower.eval().requires_grad_(False)


def pretrain_connector(
    view: ModelView,
    benchmark: WithPictures,
    spec: TrainSpec,
    seed: int,
    folder: Path,
    watching: Sequence[TrainerCallback] = (),
) -> None:
    """Train the connector of ``view.model`` in place, the vision tower and the language model frozen."""
    torch.manual_seed(seed)
    _train(
        view,
        benchmark,
        ConnectorProbe(view, benchmark.question_words, benchmark.answers),
        spec,
        spec.connector_steps,
        seed,
        folder,
        watching,
    )
    view.connector.requires_grad_(False)


def _train(
    view: ModelView,
    benchmark: WithPictures,
    model: Questioned,
    spec: TrainSpec,
    steps: int,
    seed: int,
    folder: Path,
    watching: Sequence[TrainerCallback],
) -> None:
    batch = 2 * spec.batch_size
    args = arguments(folder, steps, batch, spec.learning_rate, spec.warmup, 0.05, 500, seed, view.device.type == "cpu")
    trainer = Resuming(
        model=model,
        args=args,
        train_dataset=Pictures(benchmark, steps * batch),
        data_collator=lambda rows: model.collate(view, rows),
        callbacks=list(watching),
    )
    trainer.go_on()
