"""Scorers on frozen answers: the official rules with their traps."""

from __future__ import annotations

import random

import pytest

from eval_suite.benchmark import Item
from eval_suite.benchmarks.hallusionbench import HallusionBench, HallusionParams
from eval_suite.benchmarks.mme import Mme, MmeParams
from eval_suite.benchmarks.pope import Pope, PopeParams
from eval_suite.scorers import exact, mmmu, vqa, yes_no
from eval_suite.scorers.judged import hallusion_verdict, mmvet_grade
from factory.data.prompt import Prompt
from tests.eval_suite.released_files import hallusion_row as row
from tests.eval_suite.released_files import written


def nothing() -> Prompt:
    return Prompt(())


def measured(benchmark, answers):
    """The total row of answers to items."""
    return benchmark.rows(
        [{**benchmark.record(item, text), "text": text, "prompt_digest": "0"} for item, text in answers], draws=50
    )[0]


POPE = [  # label, answer: ten answers on which four public toolkits give four scores
    ("yes", "Yes"),
    ("yes", "Yes."),
    ("yes", "Yes, there is a dog."),
    ("yes", "There is a dog in the image."),
    ("no", "No"),
    ("no", "no."),
    ("no", "No, there is no dog."),
    ("no", "There is not a dog in the picture."),
    ("no", "NO"),
    ("no", "I cannot tell"),
]


def test_pope_on_the_ten_answers():
    pope = Pope(PopeParams(root=".", splits=("random",)))
    total = measured(
        pope, [(Item(str(i), nothing, (label, "random"), ("random",)), text) for i, (label, text) in enumerate(POPE)]
    )
    assert total["metrics"] == pytest.approx(
        {"accuracy": 0.8, "f1": 0.8, "yes_ratio": 0.6, "precision": 4 / 6, "recall": 1.0}
    )
    assert total["parse_failure_rate"] == pytest.approx(0.2) and total["n"] == 10


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("I can't tell", False),
        ("I cannot tell", False),
        ("There isn't a dog", False),
        ("Nothing. No.", False),
        ("I do not see one", True),
        ("NO", True),
        ("Yes. It is", True),
    ],
)
def test_pope_reads_what_its_rule_looks_at(text, read):
    assert yes_no.pope(text, "no", "random").failed is not read


def test_pope_averages_over_splits_and_not_over_questions():
    pope = Pope(PopeParams(root="."))
    asked = [("random", "yes", "Yes")] * 6 + [("popular", "no", "Yes")] * 2
    total = measured(
        pope, [(Item(str(i), nothing, (label, split), (split,)), text) for i, (split, label, text) in enumerate(asked)]
    )
    assert total["metrics"]["accuracy"] == 0.5 and total["metrics"]["f1"] == 0.5


@pytest.mark.parametrize(
    ("text", "official", "evalai"),
    [
        ("Yes.", "yes", "yes"),
        ("none", "0", "0"),
        ("The two dogs", "2 dogs", "2 dogs"),
        ("dont", "don't", "don't"),
        ("3.5", "3.5", "3.5"),
        ("1,000", "1000", "1000"),
        ("red,blue", "red blue", "redblue"),
        ("left-right", "left right", "left right"),
        ("dog's", "dog's", "dog 's"),
        (".5.", ".5", ".5"),
        ("what?", "what", "what"),
        ("", "", ""),
        ("a\tb\n", "b", "b"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("x" + "." * 40, "x" + "." * 8, "x" + "." * 8),
        ("couldn't've", "couldn't've", "couldn't've"),
    ],
)
def test_vqa_normalisations(text, official, evalai):
    assert vqa.normalise(text) == official
    assert vqa.evalai(text) == evalai


def slow_soft_accuracy(answer, humans):
    """The formula as the paper has it."""
    scores = []
    for i in range(len(humans)):
        others = humans[:i] + humans[i + 1 :]
        scores.append(min(1, sum(h == answer for h in others) / 3))
    return sum(scores) / len(scores)


def test_vqa_soft_accuracy_is_the_mean_over_left_out_humans():
    draw = random.Random(0)
    for _ in range(200):
        humans = draw.choices(["a", "b", "c"], k=10)
        answer = draw.choice("abcd")
        assert vqa.soft_accuracy(answer, humans) == pytest.approx(slow_soft_accuracy(answer, humans))


@pytest.mark.parametrize(
    ("text", "humans", "rule", "value"),
    [
        ("Yes", ["yes"] * 10, vqa.OFFICIAL, 0.0),  # unanimous humans: nothing is normalised, so "Yes" is no "yes"
        ("Yes", ["yes"] * 10, vqa.EVALAI, 1.0),
        ("Yes", ["yes"] * 9 + ["no"], vqa.OFFICIAL, 1.0),
        ("two", ["2"] * 3 + ["3"] * 7, vqa.OFFICIAL, 0.9),
        ("none", ["0"] * 9 + ["1"], vqa.OFFICIAL, 1.0),
        ("", ["yes"] * 10, vqa.EVALAI, 0.0),
    ],
)
def test_vqa_unanimity_trap(text, humans, rule, value):
    reading = vqa.score(text, humans, rule)
    assert reading.value == pytest.approx(value) and reading.failed == (not text)


@pytest.mark.parametrize(
    ("text", "right"), [("Yes", True), ("yes.", True), ("YES", True), ("yes, it is", False), ("", False)]
)
def test_gqa_is_exact_after_lower_case_and_full_stop(text, right):
    reading = exact.gqa(text, "yes")
    assert reading.value == right and reading.failed == (text == "")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("B. tree", "B"),
        ("The answer is C.", "C"),
        ("The answer is A. The answer is B.", None),
        ("(A)", None),
        ("", None),
        ("b", None),
        ("BA", None),
        ("F", None),
        ("Answer: A", None),
    ],
)
def test_scienceqa_reads_letters_by_three_rules(text, letter):
    assert exact.sqa_letter(text) == letter
    assert exact.scienceqa(text, 3, 0).failed == (letter is None)


def test_scienceqa_letter_beyond_the_options_is_wrong_but_read():
    assert exact.scienceqa("E", 3, 0) == exact.right_or_wrong("E", False)


def test_iconqa_keeps_the_case():
    assert exact.iconqa(" five \n", "five").value == 1 and exact.iconqa("Five", "five").value == 0


OPTIONS = {"A": "$6", "B": "$7 and more", "C": "the sea"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(B)", "B"),
        ("B", "B"),
        ("B.", "B"),
        ("Answer is B.", "B"),
        ("A. It is.", None),
        ("DNA", None),
        ("NASA is right", None),
        ("A or (C)", "C"),
        ("(A) no, rather (B)", "B"),
        ("I think that it must be the sea", "C"),
        ("the sea", None),
        ("", None),
        ("b", None),
        ("either A or B ", "B"),
    ],
)
def test_mmmu_choices(text, letter):
    assert mmmu.choice(text, OPTIONS) == letter


def test_mmmu_guesses_per_sample_whatever_ran_before():
    first = mmmu.score_choice("", OPTIONS, "A", "validation_Art_1", 42)
    random.seed(5)
    again = mmmu.score_choice("", OPTIONS, "A", "validation_Art_1", 42)
    assert first == again and first.guessed and first.failed
    drawn = {mmmu.score_choice("?", OPTIONS, "A", str(i), 42).parsed for i in range(40)}
    assert drawn == set(OPTIONS)
    assert not mmmu.score_choice("(A)", OPTIONS, "A", "x", 42).guessed


@pytest.mark.parametrize(
    ("text", "golds", "right"),
    [
        ("The answer is 12.", ["12"], True),
        ("12.004", ["12"], True),
        ("1,200", ["1200"], True),
        ("It is an oak tree", ["oak"], True),
        ("121", ["12"], False),
        ("so x = 3", ["3"], True),
        ("", ["12"], False),
        ("twelve", ["12", "twelve"], True),
    ],
)
def test_mmmu_open_answers(text, golds, right):
    assert mmmu.score_open(text, golds).value == right


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", "yes"), ("yes, it", "yes"), ("It is: no", None), (" No.", "no"), ("", None), ("Nothing", "no")],
)
def test_mme_looks_at_four_characters(text, said):
    assert yes_no.mme(text, "yes").parsed == said


def test_mme_adds_accuracy_and_both_right():
    mme = Mme(MmeParams(root="."))
    asked = [("a", 0, "yes", "Yes"), ("a", 1, "no", "No"), ("b", 0, "yes", "Yes"), ("b", 1, "no", "Yes")]
    items = [
        (Item(f"{p}/{i}", nothing, gold, ("existence",), p, (), {"subtask": "existence"}), text)
        for p, i, gold, text in asked
    ]
    total = measured(mme, items)
    assert total["metrics"]["points"] == pytest.approx(75 + 50)


def test_hallusionbench_groups_and_the_unclear_answer(tmp_path):
    rows = [
        row("VD", 1, 0, 0, 1),
        row("VD", 2, 1, 0, 0),
        row("VD", 1, 0, 1, 1),
        row("VD", 2, 1, 1, 0),
        row("VS", 0, 0, 0, 1),
        row("VS", 1, 1, 0, 1),
    ]
    answers = [
        "Yes.",
        "No, it is not",
        "yes",
        "yes",
        "I cannot see a figure",
        "The bar is unclear",
    ]  # the fifth is asked without its figure
    written(tmp_path / "HallusionBench.json", rows)
    bench = HallusionBench(HallusionParams(root=str(tmp_path)))
    result = measured(bench, list(zip(bench.items(), answers, strict=True)))
    assert result["metrics"] == pytest.approx(
        {"aAcc": 4 / 6, "qAcc": 1 / 3, "fAcc": 1 / 3, "easy": 2 / 3, "hard": 1 / 2}
    )
    assert result["parse_failure_rate"] == pytest.approx(2 / 6)


@pytest.mark.parametrize(("said", "verdict"), [("correct", True), ("Incorrect.", False), ("unclear", None), ("", None)])
def test_hallusion_judge_words(said, verdict):
    assert hallusion_verdict(said) is verdict


@pytest.mark.parametrize(("said", "grade"), [("0.5", 0.5), (" 1.0", 1.0), ("0", 0.0), ("1.5", None), ("good", None)])
def test_mmvet_grades(said, grade):
    reading = mmvet_grade(said)
    assert reading.value == (grade or 0.0) and reading.failed == (grade is None)
