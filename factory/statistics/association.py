"""How well one number tells another: rank correlation, AUROC, and bootstrap intervals that resample whole samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Interval = tuple[float, float]


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 1 to n; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of x and y [n], infinities included; NaN where either is constant."""
    a, b = ranks(x), ranks(y)
    if len(x) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """Probability that a positive's score exceeds a negative's, ties counted one half (Mann-Whitney); NaN without one
    of each.
    """
    positive = np.asarray(label, bool)
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return float("nan")
    return float((ranks(score)[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def bootstrap(
    statistic: Callable[[np.ndarray], float], clusters: Sequence[Hashable], draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """``statistic`` of the row numbers [n'] of resampled clusters, [draws]; rows of one cluster stay together."""
    _, number = np.unique([str(c) for c in clusters], return_inverse=True)
    members = [np.flatnonzero(number == i) for i in range(number.max() + 1)]
    rng = np.random.default_rng(seed)
    return np.array(
        [
            statistic(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]))
            for _ in range(draws)
        ]
    )


def interval(values: np.ndarray, level: float = 0.95) -> Interval | None:
    """Percentile interval of the finite ``values``; None where fewer than half of them are."""
    finite = values[np.isfinite(values)]
    if 2 * len(finite) < len(values) or not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Auroc(NamedTuple):
    """An AUROC with its interval and the two-sided p of its being 0.5; both None where every pair says the same."""

    value: float
    interval: Interval | None
    p: float | None


def clustered_auroc(score: np.ndarray, label: np.ndarray, clusters: Sequence[Hashable], level: float = 0.95) -> Auroc:
    """AUROC of ``score`` for ``label`` [n] with a normal interval; rows of one cluster may depend on each other.

    Each row's influence is its placement among the rows of the other label less the AUROC, over the number of its own
    label (DeLong 1988); the variance is the sum over clusters of the square of their rows' sum (Obuchowski 1997), times
    C / (C - 1) for C clusters.
    """
    score, positive = np.asarray(score, np.float64), np.asarray(label, bool)
    value = auroc(score, positive)
    if not math.isfinite(value):
        return Auroc(value, None, None)
    _, number = np.unique([str(c) for c in clusters], return_inverse=True)
    influence, together = np.empty(len(score)), ranks(score)
    for own in (True, False):
        rows = positive == own
        below = (together[rows] - ranks(score[rows])) / (~rows).sum()  # the share of the other label below, ties half
        influence[rows] = ((below if own else 1 - below) - value) / rows.sum()
    count = number.max() + 1
    error = math.sqrt(np.square(np.bincount(number, influence)).sum() * count / max(count - 1, 1))
    if error == 0:
        return Auroc(value, None, None)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = 2 * NormalDist().cdf(-abs(value - 0.5) / error)
    return Auroc(value, (max(0.0, value - z * error), min(1.0, value + z * error)), p)
