"""Tests of what a comparison would have shown, and of AUROCs whose rows depend on each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from factory.statistics.association import clustered_auroc
from factory.statistics.power import detectable


def paired(rng: np.random.Generator, n: int, gain: float, loss: float) -> np.ndarray:
    """n differences: 1 with the probability of a gain, -1 with that of a loss, else 0."""
    u = rng.random(n)
    return (u < gain).astype(float) - (u > 1 - loss)


def test_a_detectable_difference_is_found_four_times_in_five():
    rng, n, spread = np.random.default_rng(0), 600, 0.2
    least = detectable(paired(rng, n, spread / 2, spread / 2))
    found = 0
    for _ in range(400):
        d = paired(rng, n, (spread + least) / 2, (spread - least) / 2)
        found += abs(d.mean()) > 1.96 * d.std(ddof=1) / math.sqrt(n)
    assert 0.74 < found / 400 < 0.87


def test_a_detectable_difference_in_closed_form():
    d = [1.0] * 30 + [-1.0] * 20 + [0.0] * 150
    more = [*d, 1.0, -1.0]
    mean = sum(more) / len(more)
    s = math.sqrt(sum((x - mean) ** 2 for x in more) / len(more))
    assert detectable(d) == pytest.approx((1.959964 + 0.841621) * s / math.sqrt(200), rel=1e-6)
    assert detectable([0.0] * 8) > 0.4, "eight samples of which none differs promise nothing"
    assert detectable(d, power=0.9) > detectable(d) > detectable(d, level=0.9)
    with pytest.raises(ValueError, match="non-empty"):
        detectable([])


def by_loops(score: np.ndarray, label: np.ndarray, cluster: list[int]) -> tuple[float, float]:
    """AUROC and its standard error, pair by pair (DeLong's placements, summed by cluster)."""
    pos, neg = ([i for i, y in enumerate(label) if bool(y) is own] for own in (True, False))
    beats = lambda i, j: 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
    value = sum(beats(i, j) for i in pos for j in neg) / len(pos) / len(neg)
    part = {i: (sum(beats(i, j) for j in neg) / len(neg) - value) / len(pos) for i in pos}
    part |= {j: (sum(beats(i, j) for i in pos) / len(pos) - value) / len(neg) for j in neg}
    sums = {c: sum(part[i] for i in part if cluster[i] == c) for c in set(cluster)}
    count = len(sums)
    return value, math.sqrt(sum(s * s for s in sums.values()) * count / (count - 1))


def test_a_clustered_auroc_is_that_of_plain_loops():
    rng = np.random.default_rng(1)
    label, cluster = rng.random(40) < 0.4, [i // 3 for i in range(40)]
    score = np.round(rng.normal(size=40) + label, 1)
    value, error = by_loops(score, label, cluster)
    told = clustered_auroc(score, label, cluster)
    assert told.value == pytest.approx(value) and told.interval == pytest.approx(
        (value - 1.959964 * error, min(1.0, value + 1.959964 * error)), abs=1e-6
    )
    assert told.p == pytest.approx(math.erfc(abs(value - 0.5) / error / math.sqrt(2)))


def test_the_same_rows_again_tell_nothing_new():
    rng = np.random.default_rng(2)
    label = rng.random(60) < 0.5
    score = rng.normal(size=60) + 0.5 * label
    once, twice = (
        clustered_auroc(score, label, range(60)),
        clustered_auroc(np.tile(score, 2), np.tile(label, 2), [*range(60)] * 2),
    )
    assert twice.interval == pytest.approx(once.interval) and twice.p == pytest.approx(once.p)
    apart = clustered_auroc(np.tile(score, 2), np.tile(label, 2), range(120))
    assert apart.interval[0] > once.interval[0], "counted as 120 samples they would seem to tell more"


def test_intervals_of_a_clustered_auroc_cover():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        shift = np.repeat(rng.normal(size=50), 3)  # three rows of one sample are alike
        label = np.repeat(rng.random(50) < 0.5, 3)
        low, high = clustered_auroc(shift, label, np.repeat(np.arange(50), 3).tolist()).interval
        covered += low <= 0.5 <= high
    assert 0.9 <= covered / 200


def test_an_auroc_of_one_kind_alone_is_none():
    assert math.isnan(clustered_auroc(np.arange(4.0), np.ones(4), range(4)).value)
    perfect = clustered_auroc(np.arange(4.0), np.array([0, 0, 1, 1]), range(4))
    assert perfect.value == 1 and perfect.interval is None and perfect.p is None
