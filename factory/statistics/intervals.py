"""Confidence intervals for shares, means and paired comparisons.

Every interval is a pair `(low, high)` in the unit of its input. Random draws come from a seeded generator, so the
same input gives the same interval on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from factory.statistics.significance import sign_test

Interval = tuple[float, float]
Numbers = Sequence[float] | np.ndarray

_CHUNK = 125_000  # resampled indices held at once: memory stays flat, and these with their values fit into a cache


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a share (Wilson 1927).

    `successes` may be fractional, as when a sample is scored in both option orders and counts one half.
    Raises ValueError when `n` is not positive or `successes` lies outside [0, n].
    """
    if n <= 0:
        raise ValueError(f"a share needs at least one sample, got n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in [0, {n}], got {successes}")
    z = NormalDist().inv_cdf(0.5 + _checked(level) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding can leave 1e-17 where the closed form gives exactly 0 or 1.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return max(0.0, low), min(1.0, high)


def bootstrap_mean(values: Numbers, seed: int = 0, draws: int = 2000, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of the mean of `values` [n]. Raises ValueError on an empty or non-finite input."""
    return _percentiles(_resampled_means(_vector(values), np.random.default_rng(seed), draws), level)


def bootstrap_difference(a: Numbers, b: Numbers, seed: int = 0, draws: int = 2000, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of mean(a) - mean(b) for two independent groups; their sizes may differ."""
    rng = np.random.default_rng(seed)
    first = _resampled_means(_vector(a), rng, draws)
    return _percentiles(first - _resampled_means(_vector(b), rng, draws), level)


def paired_bootstrap(a: Numbers, b: Numbers, seed: int = 0, draws: int = 2000, level: float = 0.95) -> Interval:
    """Percentile bootstrap interval of mean(a - b) where a[i] and b[i] [n] belong to the same sample."""
    first, second = _vector(a), _vector(b)
    if first.shape != second.shape:
        raise ValueError(f"paired values must have equal length, got {first.size} and {second.size}")
    return bootstrap_mean(first - second, seed=seed, draws=draws, level=level)


@dataclass(frozen=True)
class PairedDifference:
    """Share of `outcome` under one method minus the share under another, over the samples both answered.

    Fields: `difference`, `low`, `high` are shares (0.1 = ten percentage points); `n` paired samples; `unmatched`
    samples that only one of the two has; `p` that of McNemar's exact test. The bootstrap's interval is too narrow where
    few samples differ (3 of 8, none the other way: it excludes zero, and p is 0.25), so a verdict takes both.
    """

    difference: float
    low: float
    high: float
    n: int
    unmatched: int
    p: float

    @property
    def verdict(self) -> str:
        """'higher', 'lower', or 'undecided' when the interval contains zero or `p` is not below 0.05."""
        if self.p >= 0.05 or self.low <= 0 <= self.high:
            return "undecided"
        return "higher" if self.low > 0 else "lower"


def paired_difference(
    a: Iterable[Mapping],
    b: Iterable[Mapping],
    outcome: str = "follow",
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
) -> PairedDifference:
    """Compare two methods sample by sample, from prediction records with `sample`, `task` and `outcome`.

    Raises ValueError when a sample occurs twice in one method, or when the two share no sample.
    """
    first, second = _by_sample(a, outcome), _by_sample(b, outcome)
    shared = [key for key in first if key in second]
    if not shared:
        raise ValueError("the two methods have no sample in common")
    left = np.array([first[key] for key in shared])
    right = np.array([second[key] for key in shared])
    low, high = paired_bootstrap(left, right, seed=seed, draws=draws, level=level)
    unmatched = len(first) + len(second) - 2 * len(shared)
    p = sign_test(int((left > right).sum()), int((left < right).sum()))
    return PairedDifference(float((left - right).mean()), low, high, len(shared), unmatched, p)


def _by_sample(predictions: Iterable[Mapping], outcome: str) -> dict[tuple, float]:
    hits: dict[tuple, float] = {}
    for row in predictions:
        key = (row.get("task"), row["sample"])
        if key in hits:
            raise ValueError(f"sample {row['sample']!r} occurs twice for one method")
        hits[key] = float(row["outcome"] == outcome)
    return hits


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    return level


def _vector(values: Numbers) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"expected a non-empty list of numbers, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError("values must be finite")
    return vector


def _resampled_means(values: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    rows = max(1, _CHUNK // values.size)
    parts = []
    for start in range(0, draws, rows):
        picks = rng.integers(values.size, size=(min(rows, draws - start), values.size))
        parts.append(values[picks].mean(axis=1))
    return np.concatenate(parts)


def _percentiles(means: np.ndarray, level: float) -> Interval:
    tail = (1 - _checked(level)) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_sums(
    sums: np.ndarray,
    metrics: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of metrics that are functions of sums over units.

    `sums` [units, k] is what each unit adds; `metrics` maps resampled totals [draws, k] to named arrays [draws].
    """
    rng = np.random.default_rng(seed)
    units = len(sums)
    rows = max(1, _CHUNK // units)
    totals = [
        rng.multinomial(units, np.full(units, 1 / units), size=min(rows, draws - start)) @ sums
        for start in range(0, draws, rows)
    ]
    return {
        name: _percentiles(np.broadcast_to(v, (draws,)), level) for name, v in metrics(np.concatenate(totals)).items()
    }
