"""Tests of a claim's numbers, against plain loops over samples, seeds and draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from factory.run.claim.draw import Scored
from factory.run.claim.numbers import against, corrected, single, tellings
from factory.run.methods.choose import Choice

FAMILIES = ("plain", "null", "learned", "own")


def drawn(draw: int, seed: int, n: int = 60, lift: float = 0.0, direction: str = "vision") -> Scored:
    """Outcomes at random: 0 follows, 1 competes, 4 is an error; ``lift`` makes the learned scale follow more."""
    rng = np.random.default_rng(100 * draw + seed)
    outcomes = {}
    for family in FAMILIES:
        follow = 0.5 + (lift if family == "learned" else 0)
        u = rng.random(n)
        outcomes[direction, family] = torch.tensor([0 if x < follow else 4 if x > 0.97 else 1 for x in u]).byte()
    choices = {(direction, f): Choice(f, direction, "v", 1.0, 0.5, 0.0, True) for f in FAMILIES[1:]}
    tasks = tuple("ab"[i % 2] for i in range(n))
    return Scored(draw, "words", seed, tuple(f"s{i}" for i in range(n)), tasks, choices, outcomes)


def test_a_difference_is_the_mean_over_samples_of_their_mean_over_seeds():
    tests = [drawn(draw, seed) for draw in (0, 1) for seed in (0, 1, 2)]
    told = against(tests, "vision", "learned")
    slow, errors = [], []
    for draw in (0, 1):
        for i in range(60):
            own = [t for t in tests if t.draw == draw]
            of = lambda t, family, k, i=i: float(t.outcomes["vision", family][i] == k)
            slow.append(sum(of(t, "learned", 0) - of(t, "null", 0) for t in own) / 3)
            errors.append(sum(of(t, "learned", 4) - of(t, "null", 4) for t in own) / 3)
    assert told.n == 120 and told.difference == pytest.approx(sum(slow) / 120)
    assert told.error == pytest.approx(sum(errors) / 120)
    assert told.low < told.difference < told.high
    half = 1.96 * np.std(slow) / np.sqrt(120)
    assert told.high - told.difference == pytest.approx(half, rel=0.2)


def test_a_lift_wins_and_none_does_not():
    better = corrected([against([drawn(0, 0, 400, 0.25)], "vision", f) for f in ("learned", "own")])
    assert [a.verdict for a in better] == ["better", "undecided"]
    assert better[0].adjusted == pytest.approx(2 * better[0].p), "Holm: the least of two is doubled"
    assert corrected([against([drawn(0, 0, 400, -0.25)], "vision", "learned")])[0].verdict == "worse"


def test_more_following_with_more_errors_is_no_win():
    t = drawn(0, 0, 400, 0.3)
    erring = t.outcomes["vision", "learned"].clone()
    erring[torch.where(erring == 1)[0]] = 4
    worse = Scored(*list(vars(t).values())[:6], {**t.outcomes, ("vision", "learned"): erring})
    [told] = corrected([against([worse], "vision", "learned")])
    assert told.low > 0 and told.error_low > 0 and told.verdict == "undecided"


def test_single_tests_are_one_a_draw_and_seed():
    tests = [drawn(draw, seed) for draw in (0, 1) for seed in (0, 1)]
    told = single(tests)
    assert [(a.about["draw"], a.about["seed"], a.family) for a in told] == [
        (draw, seed, family) for draw in (0, 1) for seed in (0, 1) for family in ("learned", "own")
    ]


def test_a_predictor_of_flips_is_told_from_one_of_nothing():
    t, rng = drawn(0, 0, 400), np.random.default_rng(5)
    before, after = (t.outcomes["vision", f].numpy() == 0 for f in ("plain", "null"))
    knows = torch.tensor(rng.normal(size=400) + 2 * (after & ~before))
    shares = {("knows", "vision"): knows, ("guesses", "vision"): torch.tensor(rng.random(400))}
    told = {(x.predictor, x.event, x.task): x for x in tellings([t], {(0, "words"): (t.samples, shares)})}
    flips = told["knows", "flips", "all"]
    at = [i for i in range(400) if not before[i]]
    pairs = [float(knows[i] > knows[j]) for i in at if after[i] for j in at if not after[j]]
    assert flips.auroc.value == pytest.approx(sum(pairs) / len(pairs)) and flips.n == len(at)
    assert flips.adjusted < 0.001 and told["guesses", "flips", "all"].adjusted > 0.05
    assert told["knows", "breaks", "all"].n == 400 - len(at) and {task for *_, task in told} == {"all", "a", "b"}


def test_predictors_are_held_against_the_samples_looked_at():
    t = drawn(0, 0, 60)
    some = t.samples[::2]
    share = torch.linspace(0, 1, 30).double()
    told = tellings([t], {(0, "words"): (some, {("r", "vision"): share})})
    before = t.outcomes["vision", "plain"][::2] == 0
    assert {x.event: x.n for x in told if x.task == "all"} == {
        "flips": int((~before).sum()),
        "breaks": int(before.sum()),
    }
