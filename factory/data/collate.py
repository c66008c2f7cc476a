"""Samples to training batches: right padding, labels, and the same way through the model for a batch without an
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from factory import files
from factory.data.conversation import Unusable
from factory.data.labels import IGNORE, Example, encode_samples
from factory.data.order import Order
from factory.data.prompt import Prompt, Role, Segment
from factory.data.source import Sample, Source
from factory.errors import UserError
from factory.model.encode import images_first, pad
from factory.model.view import ModelView

NOTHING = Prompt((Segment(Role.QUESTION, "."),))


class Places(Dataset):
    """The numbers of the samples of ``steps`` optimiser steps, place by place; a sample is read where it is
    collated.
    """

    def __init__(self, order: Order, steps: int) -> None:
        self.order, self.total = order, steps * order.batch

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: int) -> int:
        return self.order[place]


class Collator:
    """Sample numbers to what a tuned model takes and ``labels`` [B, T], on the CPU.

    A sample found unusable only now (a damaged image, a question too long for ``max_tokens``) becomes a row with no
    label: it adds nothing to the loss, whoever computes it, and is named in ``skipped`` (JSONL). Raises ``UserError``
    where that is not allowed. A batch without an image gets one more row, with a blank image and no label: vision tower
    and connector then run, forward and backward, in every batch of every rank, with gradient 0, so that no rank waits
    for another one's collective operation. Where the model's template writes a turn's images before its texts, so does
    the sample.
    """

    def __init__(self, view: ModelView, source: Source, max_tokens: int | None, skipped: Path | None) -> None:
        self.view, self.source, self.max_tokens, self.skipped = view, source, max_tokens, skipped
        self.images_first = images_first(view.writing)

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return collate(self.view, *self.examples(numbers))

    def examples(self, numbers: Sequence[int], blank: bool = True) -> tuple[list[Example], dict[str, Tensor]]:
        """The samples' examples and image inputs; ``blank``: with one more row where none has an image."""
        samples = [self._sample(i) for i in numbers]
        if blank and not any(s.prompt.images for s in samples):
            samples.append(Sample("blank", NOTHING.prepend(Segment(Role.IMAGE, image=Image.new("RGB", (32, 32))))))
        try:
            return encode_samples(self.view, samples, self.max_tokens)
        except Unusable:
            return encode_samples(self.view, [self._fitting(s) for s in samples], self.max_tokens)

    def _sample(self, number: int) -> Sample:
        try:
            sample = self.source[number]
            return replace(sample, prompt=sample.prompt.images_first()) if self.images_first else sample
        except Unusable as error:
            return self._skip(self.source.name(number), error)

    def _fitting(self, sample: Sample) -> Sample:
        try:
            encode_samples(self.view, [sample], self.max_tokens)
            return sample
        except Unusable as error:
            return self._skip(sample.id, error)

    def _skip(self, name: str, error: Unusable) -> Sample:
        if self.skipped is None:
            raise UserError(
                f"sample {name}: {error}. To leave such samples out: tune.data.max_skipped=SHARE"
            ) from error
        files.append_jsonl(self.skipped, {"sample": name, "reason": str(error)})
        return Sample(name, NOTHING)


def collate(view: ModelView, examples: Sequence[Example], images: dict[str, Tensor]) -> dict[str, Tensor]:
    """Examples padded on the right; ``roles`` [B, T] are for a tuner, which takes them out of the batch."""
    batch = view.batch([e.encoded for e in examples], images, "right")
    return {**batch, "roles": batch.roles, "labels": pad([e.labels for e in examples], IGNORE, "right")}
