"""Several data files as one source: each shows its samples as often an epoch as its weight says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from factory.corpus.audit import Audit
from factory.corpus.order import subset
from factory.corpus.source import Audited, Sample
from factory.errors import UserError


class MixedFiles:
    """Sources one after the other, each sample of a source of weight w there floor(w) times, and a share w - floor(w)
    of them, drawn by ``seed``, once more. ``take`` draws a subset of it all.

    ``of`` [n]: equal numbers are the same sample. Raises ``UserError`` for a weight at which a source shows nothing.
    """

    def __init__(self, parts: Sequence[Audited], weights: Sequence[float], take: int | None, seed: int) -> None:
        self.parts = parts
        rows = [self._rows(i, weight, seed) for i, weight in enumerate(weights)]
        table = np.concatenate(rows)
        table = table[subset(len(table), take, seed)]
        self.part, self.at = table[:, 0], table[:, 1]
        self.audit = Audit.together([part.audit for part in parts])
        begins = np.cumsum([0, *(len(part) for part in parts)])
        self.of = begins[self.part] + self.at
        self.numbers = self._gathered([part.numbers for part in parts])

    def _rows(self, part: int, weight: float, seed: int) -> np.ndarray:
        n, whole = len(self.parts[part]), int(weight)
        more = round((weight - whole) * n)
        drawn = subset(n, more, seed) if more else np.arange(0)
        at = np.concatenate([*[np.arange(n)] * whole, drawn])
        if not len(at):
            raise UserError(f"tune.data.mix.{part}.weight: {weight:g} of {n} samples is none of them")
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
