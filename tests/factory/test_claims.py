"""Claims put to the test: Holm over a run, what a claim takes, and estimates that take a sample as one unit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from factory.diagnose.claims import judged
from factory.diagnose.profiles import Profile, held_out_layer, mean_of, share_of
from factory.diagnose.summary import Claim, Finding, Summary


def put(part: str | None, p: float, holds: bool = True) -> Finding:
    return Finding("it is so", holds, {}, p, part)


def test_every_p_of_a_run_is_corrected_together():
    found = judged({"a": Summary("a", (put(None, 0.03), Finding("no claim"))), "b": Summary("b", (put(None, 0.02),))})
    assert "claims" not in found
    assert (
        found["a"].findings[0].values == {"p": 0.03, "p_holm": 0.04} and found["b"].findings[0].values["p_holm"] == 0.04
    )
    assert (
        found["a"].findings[0].holds
        and "corrected 0.04" in found["a"].findings[0].text
        and found["a"].findings[1].text == "no claim"
    )
    many = judged({"a": Summary("a", tuple(put(None, 0.03) for _ in range(2)))})
    assert [f.holds for f in many["a"].findings] == [False, False], "0.06 after correction"


def test_a_finding_that_lacks_the_effect_is_not_saved_by_its_p():
    assert not judged({"a": Summary("a", (put(None, 1e-9, holds=False),))})["a"].findings[0].holds


def test_a_claim_takes_all_of_its_parts():
    parts = [f"anchor 2/{part}" for part in ("crystallised", "synchronised", "mediated")]
    claims = {"anchor 2": Claim("it is decided there", ("crystallised", "synchronised", "mediated"))}
    verdict = lambda findings: judged({"x": Summary("x", tuple(findings), claims=claims)})["claims"].findings
    (whole,) = verdict([put(part, 1e-6) for part in parts])
    assert whole.holds and "3 of 3" in whole.text
    (lacking,) = verdict([put(part, 1e-6) for part in parts[:2]])
    assert not lacking.holds and "not tested: mediated" in lacking.text
    (split,) = verdict([put(part, 1e-6) for part in parts] + [put(parts[0], 0.9)])
    assert not split.holds and "crystallised 1 of 2" in split.text


def test_a_claim_is_what_all_that_hand_it_in_say_of_it_and_no_other_is_known():
    first, second = ({"a 1": Claim("so it is", (part,)), "a 2": Claim("untested", ("z",))} for part in "xy")
    summaries = {
        "one": Summary("one", (put("a 1/x", 1e-6), put("unknown 1/x", 1e-6)), claims=first),
        "two": Summary("two", (put("a 1/y", 1e-6),), claims=second),
    }
    (found,) = judged(summaries)["claims"].findings
    assert found.holds and found.text == "a 1: so it is: 2 of 2 tests hold (x 1 of 1, y 1 of 1)"
    (alone,) = judged({"one": replace(summaries["one"], claims={**first, **second, "a 1": Claim("so", ("x", "y"))})})[
        "claims"
    ].findings
    assert not alone.holds and alone.text.endswith("not tested: y")


def test_two_forms_of_a_sample_are_one_unit():
    keys = [(str(i), form) for i in range(20) for form in ("order1", "order2")]
    values = [float(i % 2) for i in range(20) for _ in range(2)]
    assert mean_of(values, keys) == mean_of(values[::2], keys[::2]) and share_of(values, keys).n == 20


def test_one_sample_shows_nothing():
    assert mean_of([5.0], [("a", "open")]).p == 1.0 and share_of([1.0], [("a", "open")]).interval[0] < 0.5


def test_the_layer_is_chosen_on_the_other_half():
    """Pure noise: the layer of the lowest mean looks harmful on the samples that chose it, and not on others."""
    drawn = [np.random.default_rng(seed).normal(size=(40, 30)) for seed in range(40)]
    keys = [(str(i), "open") for i in range(40)]
    assert np.mean([values.mean(0).min() for values in drawn]) < -0.25
    assert np.mean([held_out_layer(Profile(keys, values)).mean() for values in drawn]) == pytest.approx(0, abs=0.08)
    values = drawn[0]
    slow = [values[i, values[1 - i % 2 :: 2].mean(0).argmin()] for i in range(40)]
    assert held_out_layer(Profile(keys, values)) == pytest.approx(slow)
    twice = Profile([(sample, form) for sample, _ in keys for form in ("order1", "order2")], values.repeat(2, 0))
    assert held_out_layer(twice)[::2] == pytest.approx(slow), "both forms of a sample lie in one half"
    values[:, 7] -= 2
    assert held_out_layer(Profile(keys, values)) == pytest.approx(values[:, 7])
    assert held_out_layer(Profile(keys[:1], values[:1])) == pytest.approx(values[:1, 0])
