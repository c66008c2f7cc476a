"""Which sample comes at which place of a training run: the same for any number of ranks, and from any place on."""

from __future__ import annotations

import numpy as np

GROUP = 50


class Order:
    """An endless sequence over ``n`` samples: every epoch a fresh permutation, drawn from ``(seed, epoch)`` alone.

    With ``lengths`` [n], each run of ``GROUP`` batches of the permutation (fewer where that would be more than a
    quarter of it) is sorted by length and its batches are shuffled, so that a batch pads little (group_by_length).
    Place ``p`` belongs to optimiser step ``p // batch``, whoever computes it.
    """

    def __init__(self, n: int, batch: int, seed: int, lengths: np.ndarray | None = None) -> None:
        self.n, self.batch, self.seed, self.lengths = n, batch, seed, lengths
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, place: int) -> int:
        epoch, at = divmod(place, self.n)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._drawn(epoch))
        return int(self._epoch[1][at])

    def _drawn(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.n)
        if self.lengths is None:
            return order
        run = self.batch * max(1, min(GROUP, self.n // (4 * self.batch)))
        return np.concatenate([self._grouped(order[i : i + run], self.lengths, rng) for i in range(0, self.n, run)])

    def _grouped(self, part: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        part = part[np.argsort(lengths[part], kind="stable")]
        batches = [part[i : i + self.batch] for i in range(0, len(part), self.batch)]
        return np.concatenate([batches[i] for i in rng.permutation(len(batches))])


def subset(n: int, size: int | None, seed: int) -> np.ndarray:
    """Sorted indices of ``size`` of ``n`` samples drawn by seed (all where ``size`` is None or more); smaller subsets
    lie in larger ones.
    """
    if size is None or size >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:size])
