"""Choosing by halving: what is asked, of how many samples, and that nothing better is lost where rounds agree."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.run.methods.choose import choose
from factory.run.methods.halving import asked_of_all, halve, pairs_asked


def asked_by_halving(good, samples, kinds):
    """The rows of a halving among arms of which ``good`` says the share that follows, and the samples of each arm."""
    seen = defaultdict(list)

    def rows_of(sample, method, variant, strength):
        seen[method, variant, strength].append(sample.id)
        follows = strength is not None and hash((sample.id * 7919) % 1000) / 1000 < good[method, variant, strength]
        outcome = "follow" if follows else "other"
        about = {"method": method, "direction": "text", "variant": variant, "strength": strength}
        return {"sample": sample.id, "outcome": outcome, **about}

    def ask(left, some, at):
        rows = [rows_of(s, "none", "", None) for s in some]
        return rows + [
            rows_of(s, m, v, x) for s in some for m, vs in kinds.items() for v in vs for x in at(m, "text", v)
        ]

    arms = {(m, "text"): [(v, x) for (n, v, x) in good if n == m] for m in kinds}
    return halve(arms, samples, ask, 0.05, "none"), seen


@given(st.integers(1, 49), st.integers(1, 200), st.randoms(use_true_random=False))
def test_the_arm_that_is_best_on_every_sample_is_chosen_and_the_count_is_the_plan_s(arms, n, rng):
    strengths = [(i + 1) / 4 for i in range(arms)]
    rng.shuffle(order := [i / arms / 2 for i in range(arms - 1)] + [1.01])
    good = {("m", "", x): share for x, share in zip(strengths, order, strict=True)} | {("one", "", 1.0): 0.5}
    samples = [SimpleNamespace(id=i) for i in range(n)]
    rows, seen = asked_by_halving(good, samples, {"m": [""], "one": [""]})
    assert sum(len(ids) for (m, _, _), ids in seen.items() if m == "m") == pairs_asked(arms, n) <= arms * n
    assert all(len(ids) == len(set(ids)) for ids in seen.values())
    assert sorted(seen["none", "", None]) == sorted(seen["one", "", 1.0]) == list(range(n))
    whole = asked_of_all(rows, n)
    (found,) = (c for c in choose(whole, 0.05, "none") if c.method == "m")
    follows = lambda x: sum((i * 7919) % 1000 / 1000 < good["m", "", x] for i in range(n)) / n
    assert follows(found.strength) == found.follow == max(map(follows, strengths))


@pytest.mark.parametrize(("arms", "samples", "asked"), [(7, 320, 1200), (49, 320, 3200), (8, 8, 64), (2, 100, 200)])
def test_what_halving_costs(arms, samples, asked):
    """7 arms on 80 samples, 4 on 80 more, 2 on 160; 49 on 20, 25 on 20, 13 on 40, 7 on 80, 4 on 160; then grids."""
    assert pairs_asked(arms, samples) == asked
