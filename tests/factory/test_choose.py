"""Choices on dev: the budget, ties, and the oracle that peeks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.run.methods.choose import choose, oracle, outcome_share

OUTCOMES = {"f": "follow", "c": "compete", "g": "flags", "o": "other", "e": "error"}


def cell(
    method: str, outcomes: str, strength: float | None = None, variant: str = "", direction: str = "vision"
) -> list[dict]:
    """Predictions of samples 0, 1, ... whose outcomes are the letters f, c, g, o, e."""
    same = {"method": method, "direction": direction, "variant": variant, "strength": strength}
    return [{"sample": f"s{i}", "outcome": OUTCOMES[o], **same} for i, o in enumerate(outcomes)]


def chosen(dev: list[dict], budget: float = 0.1) -> dict:
    return {(c.method, c.direction): (c.variant, c.strength, c.within_budget) for c in choose(dev, budget, "none")}


def test_the_strength_that_follows_most_wins():
    dev = cell("none", "cccc") + cell("m", "fccc", 1.0) + cell("m", "fffc", 2.0) + cell("m", "ffcc", 3.0)
    assert chosen(dev) == {("m", "vision"): ("", 2.0, True)}
    (choice,) = choose(dev, 0.1, "none")
    assert (choice.follow, choice.error) == (0.75, 0.0)


def test_errors_beyond_the_budget_disqualify():
    dev = cell("none", "cccccccccc") + cell("m", "fccccccccc", 1.0) + cell("m", "ffffffffee", 2.0)
    assert chosen(dev, 0.1)["m", "vision"] == ("", 1.0, True)
    assert chosen(dev, 0.2)["m", "vision"] == ("", 2.0, True)


def test_the_budget_is_added_to_the_errors_of_the_model_itself():
    dev = cell("none", "eecccccccc") + cell("m", "ffffffffee", 2.0) + cell("m", "ffffffeeee", 1.0)
    assert chosen(dev, 0.0)["m", "vision"] == ("", 2.0, True)


def test_the_budget_of_a_direction_is_its_own():
    dev = cell("none", "ee") + cell("none", "cc", direction="text")
    dev += cell("m", "fe", 1.0) + cell("m", "fe", 1.0, direction="text") + cell("m", "cc", 0.5, direction="text")
    assert chosen(dev, 0.0) == {("m", "vision"): ("", 1.0, True), ("m", "text"): ("", 0.5, True)}


def test_where_all_exceed_the_budget_the_fewest_errors_are_taken_and_marked():
    dev = cell("none", "cccc") + cell("m", "ffee", 2.0) + cell("m", "cfce", 1.0) + cell("m", "feee", 3.0)
    assert chosen(dev, 0.1) == {("m", "vision"): ("", 1.0, False)}


@pytest.mark.parametrize("order", [1, -1])
def test_ties_go_to_fewer_errors_then_to_the_smaller_strength(order):
    cells = [cell("m", "ffcc", 3.0), cell("m", "ffcc", 1.0), cell("m", "ffcc", -2.0), cell("m", "ffce", 0.5)]
    dev = cell("none", "cccc") + [p for c in cells[::order] for p in c]
    assert chosen(dev, 1.0)["m", "vision"] == ("", 1.0, True)


def test_variants_compete_and_prompt_methods_need_no_choice():
    dev = (
        cell("none", "cc")
        + cell("cot", "ff")
        + cell("m", "fc", 1.0, "beta=0")
        + cell("m", "ff", 2.0, "beta=1")
        + cell("n", "fc", 1.0)
    )
    assert chosen(dev) == {("m", "vision"): ("beta=1", 2.0, True), ("n", "vision"): ("", 1.0, True)}


@given(
    none=st.text("ce", min_size=6, max_size=6),
    swept=st.lists(st.text("fcgoe", min_size=6, max_size=6), min_size=1, max_size=5),
    budget=st.sampled_from([0.0, 0.17, 0.34, 1.0]),
)
def test_no_choice_makes_more_errors_than_the_budget_allows_where_one_makes_fewer(none, swept, budget):
    dev = cell("none", none) + [p for i, outcomes in enumerate(swept) for p in cell("m", outcomes, 1.0 + i)]
    (choice,) = choose(dev, budget, "none")
    allowed = [s for s in swept if s.count("e") / 6 <= none.count("e") / 6 + budget]
    picked = swept[int(choice.strength) - 1]
    assert (choice.follow, choice.error) == (picked.count("f") / 6, picked.count("e") / 6)
    assert choice.within_budget == bool(allowed)
    if allowed:
        assert picked in allowed and picked.count("f") == max(s.count("f") for s in allowed)
    else:
        assert picked.count("e") == min(s.count("e") for s in swept)


def test_the_oracle_takes_each_samples_best_outcome():
    rows = oracle(
        cell("none", "cfce") + cell("m", "fcce", 1.0) + cell("m", "ccoe", 2.0) + cell("other", "ffff", 1.0), "m", "none"
    )
    assert [r["outcome"] for r in rows] == ["follow", "follow", "compete", "error"]
    assert {(r["method"], r["strength"], r["variant"]) for r in rows} == {("oracle:m", None, "")}


def test_the_oracle_is_an_upper_bound_in_every_direction_that_was_swept():
    dev = cell("none", "cc") + cell("none", "ff", direction="text") + cell("m", "cf", 1.0)
    rows = oracle(dev, "m", "none")
    assert {r["direction"] for r in rows} == {"vision"}
    followed = [outcome_share(cell(*of), "follow") for of in (("m", "cf"), ("none", "cc"))]
    assert outcome_share(rows, "follow") >= max(followed)
    assert oracle(cell("none", "cc"), "m", "none") == []


def test_what_is_not_an_error_beats_an_error():
    assert [r["outcome"] for r in oracle(cell("none", "ee") + cell("m", "oc", 1.0), "m", "none")] == [
        "other",
        "compete",
    ]


def test_a_flagged_conflict_is_no_error_and_does_not_follow():
    dev = cell("none", "cccc") + cell("m", "fggg", 1.0) + cell("m", "ffge", 2.0)
    assert chosen(dev, 0.0)["m", "vision"] == ("", 1.0, True)
    rows = oracle(cell("none", "eggc") + cell("m", "gfeg", 1.0), "m", "none")
    assert [r["outcome"] for r in rows] == ["flags", "follow", "flags", "compete"]


def test_the_unsteered_model_is_known_by_what_it_is_not_by_its_label():
    dev = (
        cell("baseline", "eecccccccc")
        + cell("none", "cccccccccc")
        + cell("m", "ffffffffee", 2.0)
        + cell("m", "fccccccccc", 1.0)
    )
    (choice,) = choose(dev, 0.0, "baseline")
    assert (choice.strength, choice.within_budget) == (2.0, True)
    assert {r["outcome"] for r in oracle(cell("baseline", "f") + cell("m", "c", 1.0), "m", "baseline")} == {"follow"}
