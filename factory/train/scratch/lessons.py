"""Training data drawn on the fly: constant memory, the same prompts for the same seed, ready to resume anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor
from torch.utils.data import Dataset

from factory.data.prompt import Prompt, Role
from factory.model.view import ModelView

IGNORE = -100
GROUP = 4
IMAGE_LENGTH = 150


class LessonStream(Dataset):
    """Prompts of ``steps`` batches, ``draw(index, batch, total)`` each; every ``GROUP`` batches are sorted by length
    and cut anew.
    """

    def __init__(self, draw: Callable[[int, int, int], Prompt], batch: int, steps: int) -> None:
        self.draw, self.batch, self.total = draw, batch, batch * steps
        self._group: tuple[int, list[Prompt]] = (-1, [])

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Prompt:
        group, at = divmod(index, self.batch * GROUP)
        if self._group[0] != group:
            self._group = (group, self._drawn(group))
        return self._group[1][at]

    def _drawn(self, group: int) -> list[Prompt]:
        first = group * self.batch * GROUP
        indices = range(first, min(first + self.batch * GROUP, self.total))
        prompts = sorted((self.draw(i, self.batch, self.total) for i in indices), key=_length)
        batches = [prompts[i : i + self.batch] for i in range(0, len(prompts), self.batch)]
        Random(group).shuffle(batches)
        return [prompt for batch in batches for prompt in batch]


def _length(prompt: Prompt) -> int:
    return sum(len(s.text) for s in prompt.segments) + IMAGE_LENGTH * len(prompt.images)


def answer_labels(ids: Tensor, roles: Tensor, eos: int) -> Tensor:
    """Labels [B, T]: the tokens of the last answer of each row and the end token after it, else ``IGNORE``."""
    answer = roles == Role.ANSWER
    ends = (ids == eos) & answer.roll(1, -1)
    later = (answer & ~answer.roll(1, -1)).flip(-1).cumsum(-1).flip(-1)  # answers that start at or after a token
    last = later - (answer & ~answer.roll(1, -1)).long() == 0
    return torch.where((answer | ends) & last, ids, IGNORE)


class LessonCollator:
    """Prompts to a padded training batch with ``labels``, and ``text_labels`` over the prompt's words."""

    def __init__(self, view: ModelView) -> None:
        self.view = view

    def __call__(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        images, written = self.view.images_of(prompts)
        batch = self.view.collate(self.view.tokens(prompts, written, ended=True), images, "right")
        labels = answer_labels(batch.input_ids, batch.roles, self.view.tokenizer.eos_token_id)
        words = (batch.roles != Role.PAD) & (batch.roles != Role.IMAGE) & (labels == IGNORE)
        return {**batch, "labels": labels, "text_labels": torch.where(words, batch.input_ids, IGNORE)}
