import math

import numpy as np
import pytest

from factory.statistics.intervals import (
    bootstrap_difference,
    bootstrap_mean,
    paired_bootstrap,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (146, 200), (1, 2000), (7.5, 20)])
def test_wilson_bounds_solve_the_score_equation(hits, n):
    # Independent of the closed form: a bound p satisfies |share - p| = z * sqrt(p (1 - p) / n).
    z = 1.959963984540054
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    for bound in (low, high):
        assert abs(hits / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


def test_wilson_textbook_value():
    assert wilson(15, 50) == pytest.approx((0.1910, 0.4375), abs=5e-5)


def test_wilson_level_widens():
    assert wilson(5, 10, level=0.99)[0] < wilson(5, 10)[0]


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(hits, n):
    with pytest.raises(ValueError):
        wilson(hits, n)


def test_draws_made_in_parts_are_those_made_at_once():
    values = np.random.default_rng(1).normal(size=301)
    means = values[np.random.default_rng(0).integers(301, size=(2000, 301))].mean(1)
    assert bootstrap_mean(values) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-14)


def test_bootstrap_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=900)
    half = 1.96 * values.std(ddof=1) / math.sqrt(values.size)
    low, high = bootstrap_mean(values, seed=3, draws=4000)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_is_reproducible_and_seeded():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_bootstrap_refuses_unusable_values(values):
    with pytest.raises(ValueError):
        bootstrap_mean(values)


def test_bootstrap_difference_takes_groups_of_different_size():
    rng = np.random.default_rng(2)
    low, high = bootstrap_difference(rng.normal(1, 1, 400), rng.normal(0, 1, 250), seed=0)
    assert low < 1 < high
    assert low > 0


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(5)
    common = rng.normal(0, 5, 300)
    a, b = common + 0.5, common + rng.normal(0, 0.1, 300)
    low, high = paired_bootstrap(a, b)
    assert low < (a - b).mean() < high
    assert low > 0.4
    assert bootstrap_difference(a, b)[0] < 0


def test_paired_bootstrap_needs_equal_lengths():
    with pytest.raises(ValueError, match="equal length"):
        paired_bootstrap([1, 2], [1])


def _records(outcomes, start=0):
    return [{"sample": f"s{i}", "task": "color", "outcome": o} for i, o in enumerate(outcomes, start)]


def test_paired_difference_matches_samples_whatever_their_order():
    a = _records(["follow"] * 60 + ["compete"] * 40)
    b = _records(["follow"] * 30 + ["compete"] * 70)
    result = paired_difference(a, list(reversed(b)))
    assert result.difference == pytest.approx(0.30)
    assert result.low < 0.30 < result.high
    assert (result.n, result.unmatched, result.verdict) == (100, 0, "higher")
    assert paired_difference(b, a).verdict == "lower"
    # 30 of 100 pairs differ by one: the standard error of the mean difference is sqrt(.3 * .7 / 100).
    assert result.high - result.low == pytest.approx(2 * 1.96 * math.sqrt(0.21 / 100), abs=0.015)


def test_paired_difference_counts_unmatched_and_may_be_undecided():
    result = paired_difference(_records(["follow", "compete"] * 10), _records(["compete", "follow"] * 10, start=4))
    assert (result.n, result.unmatched) == (16, 8)
    assert result.verdict == "undecided"


@pytest.mark.parametrize("n", [8, 384])
@pytest.mark.parametrize("gained, verdict", [(3, "undecided"), (4, "undecided"), (5, "undecided"), (6, "higher")])
def test_a_verdict_needs_as_many_samples_that_differ_as_the_exact_test_does(n, gained, verdict):
    """Of k differences all one way the exact p is 2 / 2^k; the bootstrap's interval alone excludes zero from k = 4."""
    more, less = (_records(["follow"] * k + ["other"] * (n - k)) for k in (gained, 0))
    result = paired_difference(more, less)
    assert result.p == pytest.approx(2 / 2**gained) and result.verdict == verdict
    assert paired_difference(less, more).verdict == {"higher": "lower"}.get(verdict, verdict)
    assert gained < 4 or result.low > 0


def test_paired_difference_of_another_outcome():
    assert paired_difference(_records(["error"] * 5), _records(["follow"] * 5), outcome="error").difference == 1


def test_paired_difference_refuses_duplicates_and_strangers():
    with pytest.raises(ValueError, match="twice"):
        paired_difference(_records(["follow"]) * 2, _records(["follow"]))
    with pytest.raises(ValueError, match="no sample in common"):
        paired_difference(_records(["follow"]), _records(["follow"], start=9))
