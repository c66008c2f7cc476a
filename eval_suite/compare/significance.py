"""Paired tests of two arms on the same samples, and the correction for testing many times."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from factory.statistics import significance

LEVEL = 0.05
DRAWS = 2000
# Of true null hypotheses (normal differences, 1,000 comparisons each) the bootstrap rejects 21 % at 4 units, 13 % at 8,
# 9 % at 15, 7 % at 20 and 6 % at 30 and 60; the sign-flip test 0, 5, 5, 5, 5 and 5 %.
FEW = 50


@dataclass(frozen=True)
class Test:
    """One comparison: mean difference of the per-sample scores with its 95 % interval over ``n`` samples; ``p`` as
    measured, ``adjusted`` after Holm's correction over all tests of the comparison."""

    name: str
    difference: float
    low: float
    high: float
    n: int
    p: float
    adjusted: float = math.nan

    __test__ = False  # not a test of the test suite

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "" where the corrected p is not below 0.05."""
        if not self.adjusted < LEVEL:
            return ""
        return "better" if self.difference > 0 else "worse"


def bootstrap_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a mean difference of 0: how often the centred differences, drawn again, are as far from 0."""
    return of_units(differences, range(len(differences)), seed)[0]


def of_units(differences: Sequence[float], units: Sequence[Hashable], seed: int = 0) -> tuple[float, float, float]:
    """p as in ``bootstrap_p`` and the 95 % interval of the mean difference, where those of one unit are drawn
    together.
    """
    d = np.asarray(differences, dtype=np.float64)
    sums = _sums(d, units)
    rng, n = np.random.default_rng(seed), len(sums)
    rows, means = max(1, 2_000_000 // n), []
    for start in range(0, DRAWS, rows):
        total = sums[rng.integers(n, size=(min(rows, DRAWS - start), n))].sum(1)
        means.append(total[:, 0] / total[:, 1])
    drawn = np.concatenate(means)
    extreme = int((np.abs(drawn - d.mean()) >= abs(d.mean()) - 1e-12).sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return (1 + extreme) / (DRAWS + 1), float(low), float(high)


def _sums(differences: np.ndarray, units: Sequence[Hashable]) -> np.ndarray:
    """Sum and number of each unit's differences [units, 2]."""
    _, number = np.unique([str(unit) for unit in units], return_inverse=True)
    return np.stack([np.bincount(number, differences), np.bincount(number)], 1)


def compare(a: Mapping[str, float], b: Mapping[str, float], units: Mapping[str, str] | None = None) -> Test | None:
    """Arm ``a`` against ``b``, per-sample scores by sample: McNemar where all are 0 or 1 and each is a unit of its own,
    else a paired bootstrap over ``units`` (a picture with all its questions), or where there are fewer than ``FEW``
    of them the sign-flip test of their sums; None where they share no sample."""
    shared = [s for s in a if s in b]
    if not shared:
        return None
    left, right = np.array([a[s] for s in shared]), np.array([b[s] for s in shared])
    of = [(units or {}).get(s, s) for s in shared]
    p, low, high = of_units(left - right, of)
    name, few = "paired bootstrap", len(set(of)) < FEW
    alone, binary = len(set(of)) == len(of), np.isin(np.concatenate([left, right]), (0.0, 1.0)).all()
    if alone and binary:
        name, p = "McNemar", significance.sign_test(int((left > right).sum()), int((left < right).sum()))
    elif few:
        name, p = "sign-flip test", significance.sign_flip_p(_sums(left - right, of)[:, 0])
    if not alone:
        name += " over units"
    return Test(name, float((left - right).mean()), low, high, len(shared), p)


def holm(tests: Sequence[Test]) -> list[Test]:
    """The tests with p-values corrected by Holm's step-down method (1979), in the order given."""
    return [
        replace(test, adjusted=p) for test, p in zip(tests, significance.holm([test.p for test in tests]), strict=True)
    ]
