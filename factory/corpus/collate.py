"""Samples to training batches: right padding, labels, and the same way through the model for a batch without an
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from factory import files
from factory.corpus.conversation import Unusable
from factory.corpus.labels import IGNORE, Example, encode_samples
from factory.corpus.order import Order
from factory.corpus.packed import pack
from factory.corpus.source import Sample, Source
from factory.corpus.stream import InTurn
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.encode import images_first, pad
from factory.model.view import ModelView

NOTHING = Prompt((Segment(Role.QUESTION, "."),))


class Places(Dataset):
    """The numbers of the samples of ``steps`` optimiser steps, place by place, those of ``numbers`` [n] where the order
    is one of n; a sample is read where it is collated.
    """

    def __init__(self, order: Order | InTurn, steps: int, numbers: np.ndarray | None = None) -> None:
        self.order, self.total, self.numbers = order, steps * order.batch, numbers

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: int) -> int:
        return self.order[place] if self.numbers is None else int(self.numbers[self.order[place]])


class Refused(UserError):
    """A sample that ends the training. Raised in a data loader's worker, an error is raised again with the worker's
    traceback in its message; that is taken off here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class Collator:
    """Sample numbers to what a tuned model takes and ``labels`` [B, T], on the CPU.

    A sample found unusable only now (a damaged image, a question too long for ``max_tokens``) becomes a row with no
    label: it adds nothing to the loss, whoever computes it, and is named in ``skipped`` (JSONL). Raises ``UserError``
    where that is not allowed, or more than ``most`` of them are found. A batch without an image gets one more row, with
    a blank image and no label: vision tower and connector then run, forward and backward, in every batch of every rank,
    with gradient 0, so that no rank waits for another one's collective operation. Where the model's template writes a
    turn's images before its texts, so does the sample. ``packed``: short rows share a row of at most so many tokens.
    ``tasks``: those that rows are told apart by, as ``collate`` does.
    """

    def __init__(
        self,
        view: ModelView,
        source: Source,
        max_tokens: int | None,
        skipped: Path | None,
        most: int | None = None,
        packed: int | None = None,
        tasks: Sequence[str] = (),
    ) -> None:
        self.view, self.source, self.max_tokens, self.skipped, self.most = view, source, max_tokens, skipped, most
        self.packed, self.tasks = packed, tasks
        self.images_first = images_first(view.writing)
        self._lost: set[int] = set()

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        found = self.examples(numbers)
        return collate(self.view, *found, self.tasks) if self.packed is None else pack(self.view, *found, self.packed)

    def examples(self, numbers: Sequence[int], blank: bool = True) -> tuple[list[Example], dict[str, Tensor]]:
        """The samples' examples and image inputs; ``blank``: with one more row where none has an image."""
        samples, blank = [self._sample(i) for i in numbers], blank and self.view.sees
        try:
            return encode_samples(self.view, with_image(samples, blank), self.max_tokens)
        except Unusable:
            fitting = [self._fitting(i, sample) for i, sample in zip(numbers, samples, strict=True)]
            return encode_samples(self.view, with_image(fitting, blank), self.max_tokens)

    def _sample(self, number: int) -> Sample:
        try:
            sample = self.source[number]
        except Unusable as error:
            return self._skip(number, error)
        return replace(sample, prompt=sample.prompt.images_first()) if self.images_first else sample

    def _fitting(self, number: int, sample: Sample) -> Sample:
        try:
            encode_samples(self.view, [sample], self.max_tokens)
            return sample
        except Unusable as error:
            return self._skip(number, error)

    def _skip(self, number: int, error: Unusable) -> Sample:
        name = self.source.name(number)
        if self.skipped is None:
            raise Refused(f"sample {name}: {error}. To leave such samples out: tune.data.max_skipped=SHARE") from error
        if number not in self._lost:
            self._lost.add(number)
            files.append_jsonl(self.skipped, {"sample": name, "number": number, "reason": str(error)})
        if self.most is not None and len(self._lost) > self.most:
            raise Refused(
                f"{len(self._lost)} samples could not be used, more than tune.data.max_skipped allows; the last: sample"
                f" {name}: {error}"
            ) from error
        return Sample(name, NOTHING)


def with_image(samples: Sequence[Sample], blank: bool) -> list[Sample]:
    """The samples, with a blank one more where none has an image."""
    if not blank or any(s.prompt.images for s in samples):
        return list(samples)
    return [*samples, Sample("blank", NOTHING.prepend(Segment(Role.IMAGE, image=Image.new("RGB", (32, 32)))))]


def collate(
    view: ModelView, examples: Sequence[Example], images: dict[str, Tensor], tasks: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Examples padded on the right; ``roles`` [B, T] are for a tuner, which takes them out of the batch. With
    ``tasks``, so are ``tasks`` [B]: where each row's stands among them, -1 for one of none.
    """
    batch = view.batch([e.encoded for e in examples], images, "right")
    at = {task: i for i, task in enumerate(tasks)}
    told = {"tasks": torch.tensor([at.get(e.task, -1) for e in examples])} if tasks else {}
    return {**batch, **told, "roles": batch.roles, "labels": pad([e.labels for e in examples], IGNORE, "right")}


def image_tokens(view: ModelView, size: tuple[int, int] = (336, 336)) -> int:
    """Tokens of a picture of this width and height, by default those of a square one of a common size."""
    prompt = NOTHING.prepend(Segment(Role.IMAGE, image=Image.new("RGB", size)))
    _, written = view.images_of([prompt])
    return view.tokens([prompt], written)[0].roles.count(int(Role.IMAGE))
