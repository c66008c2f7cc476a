"""Rule conflict/2 against a table of answers that was labelled by hand, twice, before the rule was written.

``conflict_answers.jsonl`` holds 568 answers to questions in the manner of MC² (facts and answers written for it), 445
of them over 22 pairs that are MC²'s own. Each was labelled ``first`` as it was written, and ``second`` from the bare
answers in a shuffled order; both passes are by one labeller. The last 66 are another's, written and labelled when the
rule was there, before it was run on them: it read one otherwise ("No smile. A frown."), and was mended. ``label`` is
what was settled on. The labels follow SPEC.md 3.3: error is an answer without a letter and a digit or one that repeats
itself; then the option letter, then the one answer that is named and not taken back, then a statement that the sources
disagree; else other.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_suite.scorers import conflict_1
from eval_suite.scorers.collapse import collapsed, repeats
from eval_suite.scorers.conflict import OUTCOMES, RULE, RULES, UNKNOWN, VERDICTS, agree, judge, outcome, read
from tests.counted import calls
from tests.released import RELEASED

TABLE = [json.loads(line) for line in Path(__file__).with_name("conflict_answers.jsonl").open(encoding="utf-8")]
CLASH, CHARTS = RELEASED / "clash", RELEASED / "chartqa_conflict"


def answers(form: str) -> list[dict]:
    return [row for row in TABLE if row["form"] == form]


def test_the_table_has_every_form_and_label():
    assert len(TABLE) >= 400 and {row["form"] for row in TABLE} == {"order1", "order2", "open"}
    assert min(Counter(row["label"] for row in TABLE)[label] for label in VERDICTS) >= 20
    assert len({(r["form"], r["vision"], r["text"], r["answer"]) for r in TABLE}) == len(TABLE)


def test_the_two_passes_agree_and_what_they_settled_on_is_one_of_theirs():
    first, second = ([row[which] for row in TABLE] for which in ("first", "second"))
    same = sum(a == b for a, b in zip(first, second, strict=True)) / len(TABLE)
    by_chance = sum(first.count(label) * second.count(label) for label in VERDICTS) / len(TABLE) ** 2
    assert same == pytest.approx(566 / 568) and (same - by_chance) / (1 - by_chance) == pytest.approx(0.995, abs=5e-4)
    assert all(row["label"] in (row["first"], row["second"]) for row in TABLE)


@pytest.mark.parametrize("form", ["order1", "order2", "open"])
def test_the_rule_agrees_with_every_label(form):
    made = {
        f"{row['vision']}/{row['text']}: {row['answer']!r}": judge(form, row["answer"], row["vision"], row["text"])
        for row in answers(form)
    }
    wanted = {f"{row['vision']}/{row['text']}: {row['answer']!r}": row["label"] for row in answers(form)}
    assert made == wanted


def test_its_predecessor_does_not():
    differ = [
        r["answer"] for r in TABLE if conflict_1.judge(r["form"], r["answer"], r["vision"], r["text"]) != r["label"]
    ]
    assert len(differ) == 216
    assert {"A man is playing tennis", "It is not A, it is B", "tennis tennis three three three three"} < {*differ}


def test_each_rule_is_known_by_its_name():
    assert RULE == "conflict/2" and set(RULES) == {"conflict/1", "conflict/2"}
    assert RULES["conflict/1"]("order1", "b", "red", "blue") == "error"
    assert RULES["conflict/2"]("order1", "b", "red", "blue") == "text"


# what the table's labels leave open: which "other" answers name neither
@pytest.mark.parametrize(
    "form, answer, found",
    [
        ("open", "green", UNKNOWN),
        ("open", "I cannot tell", UNKNOWN),
        ("open", "red or blue", "other"),
        ("open", "neither red nor blue", "other"),
        ("open", "red", "vision"),
        ("open", "they conflict", "flags"),
        ("order1", "C", UNKNOWN),
        ("order1", "red or blue", "other"),
    ],
)
def test_answers_that_name_neither_are_told_apart(form, answer, found):
    assert read(form, answer, "red", "blue") == found
    assert judge(form, answer, "red", "blue") == ("other" if found == UNKNOWN else found)


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("A, since B contradicts the image", "A"),
        ("The answer is A, because option B is only in the text.", "A"),
        ("B because A is only in the text", "B"),
        ("A or B? B", "B"),
        ("The man is riding a", None),
        ("He sits on a Honda", None),
        ("an A-frame", None),
        ("I cannot choose between A and B", None),
        ("不选A", None),
        ("B是错的，选A", "A"),
        ("ｂ", "B"),
    ],
)
def test_letters_beside_the_table(answer, letter):
    verdicts = {"A": ("vision", "text"), "B": ("text", "vision"), None: ("other", "other")}[letter]
    assert tuple(judge(form, answer, "x-ray", "ultrasound") for form in ("order1", "order2")) == verdicts


@pytest.mark.parametrize(
    "answer, vision, text, verdict",
    [
        ("twenty three", "23", "3", "vision"),
        ("1,038,000 dollars", "1038000", "8", "vision"),
        ("4.10", "4.1", "4", "vision"),
        ("二十三个", "23", "3", "vision"),
        ("13", "three", "3", "other"),
        ("2 dogs or 3", "2", "5", "other"),
        ("The two sources conflict", "two", "three", "flags"),
        ("The event involves horses, not dogs.", "Horses", "Dogs", "vision"),
        ("It isn't a cat. The dog.", "cat", "dog", "text"),
        ("Not a cat, a dog", "cat", "dog", "text"),
        ("Neither a cat nor a dog", "cat", "dog", "other"),
        ("I can't choose between a cat and a dog", "cat", "dog", "other"),
        ("not both the cat and the dog", "cat", "dog", "other"),
        ("빨간색입니다", "빨간색", "파란색", "vision"),
        ("two hundred", "two", "200", "text"),
        ("a hundred", "100", "1", "vision"),
        ("1.5 million", "1500000", "1.5", "vision"),
        ("3万", "3", "30000", "text"),
        ("twelve hundred", "1200", "12", "vision"),
        ("two hundred to three hundred", "200", "300", "other"),
        ("hundreds of birds", "100", "2", "other"),
        ("two hundred three hundred", "203", "200", "text"),
        ("nineteen eighty", "1980", "2", "other"),
        ("the second one", "2", "3", "other"),
    ],
)
def test_words_and_numbers_beside_the_table(answer, vision, text, verdict):
    assert judge("open", answer, vision, text) == verdict


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("stripedRespond caseRespond caseRespond", True),
        ("Mississippi", False),
        ("iPhone or iPhone", False),
        ("1. red 2. red 3. red", False),
        ("red 1 red 2 red 3 red 4", False),
        ("2 2 2 2 2 2 2", False),
        ("哈哈哈哈哈哈", True),
        ("图片显示红色，图片显示红色，图片显示红色", True),
    ],
)
def test_what_repeats(answer, expected):
    assert repeats(answer) == collapsed(answer) == expected


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="0123456789.!,? \n", min_size=1).filter(lambda t: any(c.isdigit() for c in t)))
def test_digits_and_punctuation_are_never_an_error(answer):
    assert judge("open", answer, "red", "blue") != "error"


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="abcdefghij", min_size=2, max_size=8), st.sampled_from(["", " ", ", "]), st.integers(3, 9))
def test_a_unit_of_letters_three_times_running_is_an_error(unit, between, times):
    assert judge("open", between.join([unit] * times), "red", "blue") == "error"


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["order1", "order2", "open"]), st.text(max_size=40), st.text(max_size=8), st.text(max_size=8))
def test_every_text_has_a_verdict(form, answer, vision, text):
    assert judge(form, answer, vision, text) in VERDICTS


@given(st.sampled_from(["A", "B", "(a)", "not A", "red", "blue and red", "they conflict", "B, so A", "A flock", "?"]))
def test_the_two_orders_mirror_each_other(answer):
    mirrored = {"vision": "text", "text": "vision"}
    one, other = judge("order1", answer, "red", "blue"), judge("order2", answer, "blue", "red")
    assert other == mirrored.get(one, one)


@pytest.mark.parametrize(
    "piece", ["ab", "a b ", "1 ", "A ", "not ", "red or ", "conflict ", "if conflict ", "我", "so "]
)
def test_the_work_on_an_answer_grows_no_faster_than_its_length(piece):
    def work(form: str, size: int) -> int:
        return calls(lambda: judge(form, piece * (size // len(piece)), "red", "blue"))

    for form in ("order1", "open"):
        assert work(form, 4000) < 5 * work(form, 1000)


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        (["vision", "vision"], "vision"),
        (["text", "text"], "text"),
        (["vision", "text"], "other"),
        (["other", "other"], "other"),
        (["other", "text"], "other"),
        (["flags", "flags"], "flags"),
        (["flags", "vision"], "other"),
        (["flags", "other"], "other"),
        (["flags", "error"], "error"),
        (["unknown", "unknown"], "unknown"),
        (["unknown", "vision"], "other"),
        (["vision", "error"], "error"),
        (["error", "error"], "error"),
        (["flags"], "flags"),
        (["error"], "error"),
    ],
)
def test_two_orders_must_agree(verdicts, expected):
    assert agree(verdicts) == expected


def test_a_model_that_always_says_a_follows_nobody():
    assert agree([judge(form, "A", "red", "blue") for form in ("order1", "order2")]) == "other"


@pytest.mark.parametrize(
    "verdict, vision, text",
    [
        ("vision", "follow", "compete"),
        ("text", "compete", "follow"),
        ("flags", "flags", "flags"),
        ("other", "other", "other"),
        ("unknown", "other", "other"),
        ("error", "error", "error"),
    ],
)
def test_outcomes(verdict, vision, text):
    assert (outcome(verdict, "vision"), outcome(verdict, "text")) == (vision, text)
    assert {vision, text} <= set(OUTCOMES)


@pytest.mark.skipif(not CLASH.is_dir(), reason="CLASH's released answers are not here")
@pytest.mark.parametrize("name", ["gpt-5", "llava-v1.5-7b", "llava-v1.5-7b_wo_contr"])
def test_released_answers_flag_where_clash_says_so_and_never_follow_the_other_side(name):
    records = json.loads((CLASH / "open_ended" / f"{name}_predictions.json").read_text(encoding="utf-8"))
    assert len(records) == 1281
    for r in records:
        theirs, sides = r["evaluation"], r["modality_answers"]
        ours = judge("open", r["prediction"], sides["image_only"], sides["text_only"])
        assert (ours == "flags") == theirs["matches_contradiction"], r
        assert ours != "vision" or theirs["matches_image_only"], r
        assert ours != "text" or theirs["matches_text_only"], r


@pytest.mark.skipif(not CHARTS.is_dir(), reason="the released answers on conflicting charts are not here")
def test_released_numbers_follow_the_side_that_their_authors_say():
    items = [json.loads(line) for line in (CHARTS / "items.jsonl").open(encoding="utf-8")]
    sides = {item["chartqa_test_index"]: (item["chart_answer"], item["report_answer"]) for item in items}
    verdicts = {"image": "vision", "text": "text", "neither": "other"}
    read_alike = 0
    for file in sorted((CHARTS / "answers").glob("*.jsonl")):
        for r in map(json.loads, file.open(encoding="utf-8")):
            if r["dataset_index"] in sides and r["follows"] in verdicts:  # else: not in the form that was asked for
                assert judge("open", r["prediction"], *sides[r["dataset_index"]]) == verdicts[r["follows"]], r
                read_alike += 1
    assert read_alike == 1360


def spelt_out(n: int, joint: str = " and ") -> str:
    """English for a number below a million, as schoolbooks write it."""
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    small = [*small.split(), "seventeen", "eighteen", "nineteen"]
    tens = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if n < 20:
        return small[n]
    if n < 100:
        return tens[n // 10 - 2] + ("-" + small[n % 10] if n % 10 else "")
    unit, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    rest = n % unit
    before_rest = joint if rest < 100 else " "
    return f"{spelt_out(n // unit, joint)} {name}" + (before_rest + spelt_out(rest, joint) if rest else "")


def in_chinese(n: int) -> str:
    """Chinese for a number below a hundred thousand."""
    out, gap = "", False
    for unit, name in ((10_000, "万"), (1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = n // unit % 10
        if digit:
            out += ("零" if gap and out else "") + "零一二三四五六七八九"[digit] + name
        gap = not digit
    return out


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 999_999), st.sampled_from([" and ", " "]))
def test_number_words_are_the_number(n, joint):
    assert judge("open", f"There are {spelt_out(n, joint)} people.", str(n), str(n + 1)) == "vision"
    assert judge("open", f"{n:,}", spelt_out(n + 1, joint), spelt_out(n, joint)) == "text"
    if n < 100_000:
        assert judge("open", f"有{in_chinese(n)}个人", str(n + 1), str(n)) == "text"


@pytest.mark.parametrize(
    "answer, a, b, letter",
    [
        ("It is vitamin B.", "vitamin B", "vitamin C", "A"),
        ("vitamin A", "vitamin C", "vitamin A", "B"),
        ("B. vitamin A", "vitamin B", "vitamin A", "B"),
        ("B", "plan B", "plan A", "B"),
        ("B flat", "B flat", "A sharp", "A"),
        ("hepatitis B, not hepatitis A", "hepatitis B", "hepatitis A", "A"),
        ("A. vitamin B\nB. vitamin A", "vitamin B", "vitamin A", None),
        ("vitamin C", "vitamin A", "vitamin B", None),
    ],
)
def test_a_letter_inside_an_options_text_chooses_nothing(answer, a, b, letter):
    verdict = {"A": "vision", "B": "text", None: "other"}[letter]
    assert judge("order1", answer, a, b) == verdict
