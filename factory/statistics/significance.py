"""Tests of a mean difference, and the correction for testing many times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

DRAWS = 9999


def sign_test(gained: int, lost: int) -> float:
    """Exact two-sided p that gains and losses are equally likely (McNemar's exact test where they are discordant
    pairs).
    """
    n, fewer = gained + lost, min(gained, lost)
    if n == 0:
        return 1.0
    k = np.arange(fewer + 1)
    logs = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in k]) - n * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def binomial_tail(k: int, n: int, rate: float) -> float:
    """P(Bin(n, rate) <= k): the exact one-sided p that a rate is at least ``rate`` where ``k`` of ``n`` were seen."""
    if k >= n:
        return 1.0
    term = total = (1 - rate) ** n
    for i in range(k):
        term *= (n - i) / (i + 1) * rate / (1 - rate)
        total += term
    return min(1.0, total)


def sign_flip_p(differences: Sequence[float] | np.ndarray, seed: int = 0) -> float:
    """Two-sided p of a mean difference of 0: how often the mean is as far from 0 when each difference's sign is drawn
    anew.

    Exact in any number of samples where differences are symmetric about 0: with few of them it cannot be small. All
    signs are gone through where there are no more than ``DRAWS`` of them (up to 13 samples), else so many are drawn.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(np.unique(np.abs(d[d != 0]))) <= 1:
        return sign_test(int((d > 0).sum()), int((d < 0).sum()))
    observed, extreme = abs(d.sum()) - 1e-12 * np.abs(d).sum(), 0
    if 2 ** len(d) <= DRAWS:
        every = np.array(list(product((-1.0, 1.0), repeat=len(d))))
        return float((np.abs(every @ d) >= observed).mean())
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(d))
    for start in range(0, DRAWS, rows):
        signs = rng.integers(0, 2, size=(min(rows, DRAWS - start), len(d))) * 2 - 1
        extreme += int((np.abs(signs @ d) >= observed).sum())
    return (1 + extreme) / (DRAWS + 1)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's step-down method (1979), in the order given."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted
