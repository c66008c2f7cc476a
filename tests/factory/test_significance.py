"""Tests of mean differences."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.statistics.significance import binomial_tail, holm, sign_flip_p, sign_test


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_sign_test_is_exact(gained, lost):
    n = gained + lost
    slow = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n) if n else 1.0
    assert sign_test(gained, lost) == pytest.approx(slow)


def test_the_sign_test_of_many():
    assert sign_test(5000, 5200) == pytest.approx(0.0488, abs=0.001) and sign_test(60_000, 40_000) < 1e-300


def test_sign_flips_are_those_of_all_sign_patterns():
    d = np.array([0.3, -0.1, 0.8, 0.5, 0.2, 0.4, -0.2])
    slow = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in product((-1, 1), repeat=len(d))])
    assert sign_flip_p(d) == slow
    long = np.concatenate([d, [0.9, -0.6, 0.15, 0.35, -0.45, 0.05, 0.7, -0.8]])
    slow = np.mean([abs(np.dot(s, long)) >= abs(long.sum()) - 1e-12 for s in product((-1, 1), repeat=len(long))])
    assert sign_flip_p(long) == pytest.approx(slow, abs=0.015)
    assert sign_flip_p(d) == sign_flip_p(-d)


def test_few_samples_cannot_show_anything():
    assert sign_flip_p([5.0]) == 1.0 and sign_flip_p([5.0, 4.0]) == pytest.approx(0.5, abs=0.02)
    assert sign_flip_p([0.0, 0.0]) == 1.0


def test_sign_flips_hold_their_level_and_see_a_shift():
    rng = np.random.default_rng(0)
    null = [sign_flip_p(rng.normal(size=40)) for _ in range(60)]
    assert np.mean(np.array(null) < 0.05) <= 0.15 and np.mean(null) == pytest.approx(0.5, abs=0.15)
    assert sign_flip_p(rng.normal(size=40) + 1) < 0.001


def test_holm_is_the_step_down_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(("k", "n", "rate"), [(0, 5, 0.3), (2, 7, 0.1), (6, 7, 0.9), (7, 7, 0.5), (30, 400, 0.1)])
def test_the_binomial_tail_is_that_of_all_its_terms(k, n, rate):
    expected = sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1))
    assert binomial_tail(k, n, rate) == pytest.approx(expected, rel=1e-9)
