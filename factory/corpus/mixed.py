"""Several data files as one source: each shows its samples as often an epoch as its weight says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from factory.corpus.audit import Audit
from factory.corpus.order import subset
from factory.corpus.source import Audited, Sample
from factory.errors import UserError

MOST = 50_000_000  # samples an epoch, of which a table is kept in memory


class MixedFiles:
    """Sources one after the other, each sample of a source of weight w there floor(w) times, and a share w - floor(w)
    of them, drawn by ``seed``, once more. ``take`` draws a subset of it all.

    ``of`` [n]: equal numbers are the same sample, also of a source that is there twice. Raises ``UserError`` for a
    weight at which a source shows nothing, and for weights that make more than ``MOST`` samples.
    """

    def __init__(self, parts: Sequence[Audited], weights: Sequence[float], take: int | None, seed: int) -> None:
        self.parts = parts
        check_many([len(part) for part in parts], weights)
        rows = [self._rows(i, weight, seed) for i, weight in enumerate(weights)]
        table = np.concatenate(rows)
        table = table[subset(len(table), take, seed)]
        self.part, self.at = table[:, 0], table[:, 1]
        self.audit = Audit.together([part.audit for part in parts])
        first = [next(i for i, other in enumerate(parts) if _same(other, part)) for part in parts]
        begins = np.cumsum([0, *(len(part) for part in parts)])[first]
        self.of = begins[self.part] + self.at
        self.numbers = self._gathered([part.numbers for part in parts])

    def _rows(self, part: int, weight: float, seed: int) -> np.ndarray:
        n = len(self.parts[part])
        at = np.concatenate([*[np.arange(n)] * int(weight), drawn_of(n, weight, seed)])
        if not len(at):
            raise nothing_of(part, weight, n)
        return np.stack([np.full(len(at), part), at], axis=1)

    def _gathered(self, of_parts: Sequence[np.ndarray]) -> np.ndarray:
        """Values [n] of the samples, from those of each part's."""
        values = np.empty(len(self.at), np.int64)
        for i, own in enumerate(of_parts):
            values[self.part == i] = own[self.at[self.part == i]]
        return values

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> Sample:
        return self.parts[self.part[index]][int(self.at[index])]

    def lengths(self, image: int) -> np.ndarray:
        return self._gathered([part.lengths(image) for part in self.parts])

    def name(self, index: int) -> str:
        return self.parts[self.part[index]].name(int(self.at[index]))

    def task(self, index: int) -> str:
        return self.parts[self.part[index]].task(int(self.at[index]))


def drawn_of(n: int, weight: float, seed: int) -> np.ndarray:
    """Which of ``n`` samples of a weight are there once more than floor(weight) times."""
    more = round((weight - int(weight)) * n)
    return subset(n, more, seed) if more else np.arange(0)


def nothing_of(part: int, weight: float, n: int) -> UserError:
    return UserError(f"tune.data.mix.{part}.weight: {weight:g} of {n} samples is none of them")


def check_many(sizes: Sequence[int], weights: Sequence[float]) -> None:
    """Raises ``UserError`` for weights that make more than ``MOST`` samples of files of these sizes."""
    if not sum(n * weight for n, weight in zip(sizes, weights, strict=True)) <= MOST:
        raise UserError(f"tune.data.mix: its weights make an epoch of more than {MOST:,} samples; choose lower ones")


def _same(one: Audited, other: Audited) -> bool:
    return one.audit.digest == other.audit.digest and np.array_equal(one.numbers, other.numbers)
