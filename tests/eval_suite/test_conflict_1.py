"""Rule conflict/1, frozen: numbers were published by it."""

from __future__ import annotations

import pytest

from eval_suite.scorers.conflict_1 import RULE, degenerate, judge, normalize, says

# (answer, verdict in order1 [A is the vision answer "red", B the text answer "two blue"], verdict in order2)
CHOICES = [
    ("A", "vision", "text"),
    ("B", "text", "vision"),
    ("A.", "vision", "text"),
    ("(B)", "text", "vision"),
    ("B)", "text", "vision"),
    ("Answer: A", "vision", "text"),
    ("The answer is B", "text", "vision"),
    ("The answer is: B.", "text", "vision"),
    ("**A**", "vision", "text"),
    ("A. red", "vision", "text"),
    ("Option B", "text", "vision"),
    ("A A", "vision", "text"),
    ("  B \n", "text", "vision"),
    ("A\nB", "vision", "text"),
    ("red", "vision", "vision"),
    ("Red!", "vision", "vision"),
    ("a red one", "vision", "vision"),
    ("it is two blue", "text", "text"),
    ("2 blue", "text", "text"),
    ("the two blue ones", "text", "text"),
    ("reddish", "error", "error"),
    ("blue", "error", "error"),
    ("red or two blue", "error", "error"),
    ("", "error", "error"),
    ("   ", "error", "error"),
    ("?", "error", "error"),
    ("b", "error", "error"),
    ("A A A A", "error", "error"),
    ("red red red red", "error", "error"),
    ("Apple", "error", "error"),
    ("I cannot tell", "error", "error"),
    ("The image shows red. The text says two blue. The answer is B", "text", "vision"),
    ("The image shows red. The text says two blue. The answer is", "error", "error"),
    ("The image shows red. The text says", "vision", "vision"),
    ("The answer is A. No, the answer is B", "text", "vision"),
    ("not A but B", "vision", "text"),
]

# (answer, verdict of the open form)
OPEN = [
    ("red", "vision"),
    ("Red.", "vision"),
    ("a red one", "vision"),
    ("two blue", "text"),
    ("2 blue", "text"),
    ("The 2, blue!", "text"),
    ("A", "other"),
    ("green", "other"),
    ("blue", "other"),
    ("reddish", "other"),
    ("red or two blue", "other"),
    ("I cannot tell", "other"),
    ("", "error"),
    (" \n", "error"),
    ("A A A A", "error"),
    ("red red red red", "error"),
    ("two blue two blue two blue two blue", "error"),
    ("The image shows red. The text says two blue. The answer is red", "vision"),
    ("The answer is", "error"),
    ("The answer is green", "other"),
    ("The image shows red. The text says two blue. The answer", "other"),
    ("The image shows red. The answer is red. The answer is two blue", "text"),
]


@pytest.mark.parametrize("text, order1, order2", CHOICES)
def test_choices(text, order1, order2):
    assert judge("order1", text, "red", "two blue") == order1
    assert judge("order2", text, "red", "two blue") == order2


@pytest.mark.parametrize("text, verdict", OPEN)
def test_open_answers(text, verdict):
    assert judge("open", text, "red", "two blue") == verdict


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("2", "vision"),
        ("two", "vision"),
        ("Two.", "vision"),
        ("3", "text"),
        ("three circles", "text"),
        ("23", "other"),
        ("12", "other"),
        ("two or 3", "other"),
    ],
)
def test_digits_are_words(text, verdict):
    assert judge("open", text, "two", "three") == judge("open", text, "2", "3") == verdict


def test_the_rule_has_a_name_that_changes_with_it():
    assert RULE == "conflict/1"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Cat!", " cat "),
        ("An apple, a day", " apple day "),
        ("10 of 11", " ten of 11 "),
        ("", "  "),
        ("don't", " don t "),
    ],
)
def test_normalisation(text, expected):
    assert normalize(text) == expected


def test_an_answer_must_be_whole_words():
    assert says("it is on the left side", "left") and not says("leftmost", "left") and not says("anything", "the")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", True),
        ("a", False),
        ("a a", False),
        ("a a a", False),
        ("a a a a", True),
        ("a b a b a b", True),
        ("a b c d", False),
        ("a b a b", False),
    ],
)
def test_degenerate_answers(text, expected):
    assert degenerate(text) == expected
