"""Paired tests of two arms on the same samples, and the correction for testing many times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from factory.statistics import significance
from factory.statistics.intervals import paired_bootstrap

LEVEL = 0.05
DRAWS = 2000


@dataclass(frozen=True)
class Test:
    """One comparison: mean difference of the per-sample scores with its 95 % interval over ``n`` samples; ``p`` as measured,
    ``adjusted`` after Holm's correction over all tests of the comparison."""

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
        """"better", "worse", or "" where the corrected p is not below 0.05."""
        if not self.adjusted < LEVEL:
            return ""
        return "better" if self.difference > 0 else "worse"


def bootstrap_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a mean difference of 0: how often the centred differences, drawn again, are as far from 0."""
    d = np.asarray(differences, dtype=np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(d))
    centred, observed, extreme = d - d.mean(), abs(d.mean()), 0
    for start in range(0, DRAWS, rows):
        draws = centred[rng.integers(len(d), size=(min(rows, DRAWS - start), len(d)))].mean(1)
        extreme += int((np.abs(draws) >= observed - 1e-12).sum())
    return (1 + extreme) / (DRAWS + 1)


def compare(a: Mapping[str, float], b: Mapping[str, float]) -> Test | None:
    """Arm ``a`` against ``b``, per-sample scores by sample: McNemar where all are 0 or 1, else a paired bootstrap; None where they
    share no sample."""
    shared = [s for s in a if s in b]
    if not shared:
        return None
    left, right = np.array([a[s] for s in shared]), np.array([b[s] for s in shared])
    low, high = paired_bootstrap(left, right, draws=DRAWS)
    binary = np.isin(np.concatenate([left, right]), (0.0, 1.0)).all()
    p = significance.sign_test(int((left > right).sum()), int((left < right).sum())) if binary else bootstrap_p(left - right)
    return Test("McNemar" if binary else "paired bootstrap", float((left - right).mean()), low, high, len(shared), p)


def holm(tests: Sequence[Test]) -> list[Test]:
    """The tests with p-values corrected by Holm's step-down method (1979), in the order given."""
    return [replace(test, adjusted=p) for test, p in zip(tests, significance.holm([test.p for test in tests]), strict=True)]
