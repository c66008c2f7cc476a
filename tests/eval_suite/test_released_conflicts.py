"""CLASH and Which Source Wins: their rules against the released verdicts, and their files as released and damaged."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter

from eval_suite.benchmarks.chartqa_conflict import corrupted, degraded
from eval_suite.scorers import chartqa_conflict as charts_rule
from eval_suite.scorers import clash as clash_rule
from eval_suite.scorers.porter import stem
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.nodes import read_node
from tests.eval_suite.released_conflicts import chart_item, chartqa_conflict, clash, clash_sample, phd, words_or_vision
from tests.eval_suite.released_files import written
from tests.released import RELEASED
from tests.tiny import tiny_view

MADE = {"clash": clash, "chartqa_conflict": chartqa_conflict}


def made(tmp_path, name, **more):
    return read_node("benchmark", {**MADE[name](tmp_path), **more}).make()


def test_stems_are_those_of_nltk():  # nltk 3.10.4, PorterStemmer()
    stems = """skies sky|ties tie|flies fli|fly fli|dying die|died die|cried cri|enjoy enjoy|happy happi|us us|oed o
        |conflicting conflict|contradictory contradictori|contradicts contradict|agreed agre|feed feed|hopping hop
        |falling fall|filing file|relational relat|conditional condit|fully fulli|hopefully hope|geology geolog
        |replacement replac|adoption adopt|controlling control|roses rose|glasses glass|buses buse|wooden wooden
        |rating rate|digitizer digit"""
    wanted = dict(pair.split() for pair in stems.split("|"))
    assert {word: stem(word) for word in wanted} == wanted


@pytest.mark.parametrize(
    "text, image, other, found",
    [
        ("The bench is made of wood.", "Wooden", "metal", "vision"),
        ("Two 3s", "three", "2", "text"),
        ("two or three", "three", "2", "other"),
        ("Conflicting information – cannot answer", "red", "blue", "flags"),
        ("They contradict: red here", "red", "blue", "other"),
        ("not red", "red", "blue", "vision"),
        ("redwood", "red", "blue", "unknown"),
        ("", "red", "blue", "unknown"),
        ("An owl", "the", "dog", "vision"),
    ],
)
def test_open_answers_by_clash(text, image, other, found):
    matches = clash_rule.open_ended(text, image, other)
    assert clash_rule.verdict(matches) == found
    assert matches["matches_none"] == (found == "unknown") and len(matches) == 4


@pytest.mark.parametrize(
    "text, found",
    [("(A)", "vision"), ("(B), (B)", "text"), ("(C)", "unknown"), ("(D) They conflict", "flags"), ("A", "unknown")]
    + [("(A) or (B)", "unknown"), ("(a)", "unknown"), ("", "unknown")],
)
def test_choices_by_clash(text, found):
    kinds = (clash_rule.IMAGE, clash_rule.TEXT, clash_rule.IRRELEVANT, clash_rule.CONTRADICTION)
    assert clash_rule.verdict(clash_rule.multiple_choice(text, dict(zip(kinds, "ABCD", strict=True)))) == found


@pytest.mark.parametrize(
    "text, unit, found",
    [
        ("#### 3.90", "million_usd", "image"),
        ("$3.9 million", "million_usd", "image"),
        ("3.9 million dollars", "million_usd", "image"),
        ("3.9 billion", "million_usd", "invalid"),
        ("€3.9", "million_usd", "invalid"),
        ("3.9%", "million_usd", "invalid"),
        ("4%", "percentage", "text"),
        ("4 people", "count", "text"),
        ("The final answer is 4.", "count", "text"),
        ("Final answer: 8/2", "count", "text"),
        ("1/0", "count", "invalid"),
        (",", "count", "invalid"),
        ("5", "count", "neither"),
        ("4\nbecause the report says so in so many words", "count", "text"),
        ("It is 4, as far as one can see in the chart", "count", "invalid"),
        ("#### <answer>", "count", "invalid"),
        ("yes", "count", "neither"),
        ("", "count", "invalid"),
    ],
)
def test_numbers_by_which_source_wins(text, unit, found):
    assert charts_rule.follows(text, "3.9", "4.0", unit) == found


def test_equal_sides_are_ambiguous():
    assert charts_rule.follows("4", "4.0", "4", "count") == "ambiguous"


@pytest.mark.skipif(not (RELEASED / "clash").is_dir(), reason="CLASH's released answers are not here")
@pytest.mark.parametrize(
    "name",
    ["multiple_choice/gpt-5", "open_ended/gpt-5", "open_ended/llava-v1.5-7b", "open_ended/llava-v1.5-7b_wo_contr"],
)
def test_every_released_verdict_of_clash_is_ours(name):
    rows = json.loads((RELEASED / "clash" / f"{name}_predictions.json").read_text(encoding="utf-8"))
    differ = []
    for row in rows:
        sides = row["modality_answers"]
        if "multiple_choice" in name:
            kinds = {"contradiction": clash_rule.CONTRADICTION, "irrelevant_but_plausible": clash_rule.IRRELEVANT}
            letters = {kinds.get(k, f"matches_{k}"): side["choice"] for k, side in sides.items()}
            found = clash_rule.multiple_choice(row["prediction"], letters)
        else:
            found = clash_rule.open_ended(row["prediction"], sides["image_only"], sides["text_only"])
        differ += [row["image_id"]] * (found != row["evaluation"])
    assert len(rows) == 1281 and differ == []


@pytest.mark.skipif(not (RELEASED / "chartqa_conflict").is_dir(), reason="the released answers on charts are not here")
def test_every_released_verdict_on_charts_is_ours():
    items = {e.number: e for e in read_node("benchmark", at("chartqa_conflict")).make().entries}
    counts: Counter[str] = Counter()
    for file in sorted((RELEASED / "chartqa_conflict/answers").glob("*.jsonl")):
        for row in map(json.loads, file.open(encoding="utf-8")):
            if (item := items.get(row["i"])) is None:
                counts[f"no item {row['i']}"] += 1
                continue
            found = charts_rule.follows(row["prediction"], item.chart, item.report, item.unit)
            counts["equal" if found == row["follows"] else "differ"] += 1
    assert counts == {"equal": 229 * 6, "no item 45": 6}


def at(name):
    return {"type": name, "root": str(RELEASED / name)}


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the released files are not here")
def test_the_released_files_make_splits_that_share_no_picture():
    clash_, charts = (read_node("benchmark", at(name)).make() for name in ("clash", "chartqa_conflict"))
    of = {split: clash_.samples(split) for split in ("train", "dev", "test", "all")}
    assert {split: len(samples) for split, samples in of.items()} == {
        "train": 618,
        "dev": 155,
        "test": 516,
        "all": 1289,
    }
    assert Counter(s.task for s in of["all"]) == {"object": 655, "attribute": 634}
    shown = [{s.tags["image_id"] for s in of[split]} for split in ("train", "dev", "test")]
    assert not (shown[0] & shown[1] or shown[0] & shown[2] or shown[1] & shown[2])
    first = Counter(clash_.choices(s)["matches_image_only"] for s in of["all"])
    assert min(first.values()) > 310  # of each letter a quarter
    assert [len(charts.samples(split)) for split in ("train", "dev", "test", "all")] == [110, 27, 92, 229]
    assert charts.absent(charts.samples("all"))[0] == []


def test_clash_is_asked_as_its_authors_do(tmp_path):
    b = made(tmp_path, "clash")
    sample = next(s for s in b.samples("all") if s.tags["image_id"] == f"{501:012d}")
    text = b.prompt(sample, "choice").messages()[0]["content"][-1]["text"]
    head, caption, question, *options = text.rsplit("\n", 6)
    assert head.endswith("Do not include any other text.") and caption == "A blue bus on a table."
    assert question == "What color is the bus?"
    letters = {option[4:]: option[:3] for option in options}
    assert set(letters) == {"green", "blue", "white", "Conflicting information – cannot answer."}
    toward = {direction: b.answer(sample, "choice", direction) for direction in ("vision", "text")}
    assert toward == {"vision": letters["green"], "text": letters["blue"]}
    verdicts = {option: b.judge(sample, "choice", letter) for option, letter in letters.items()}
    assert list(verdicts.values()).count("flags") == 1 and verdicts["white"] == "unknown"
    assert (verdicts["green"], verdicts["blue"]) == ("vision", "text")
    control = made(tmp_path, "clash", wo_contr=True, scoring="open_ended")
    (same,) = [s for s in control.samples("all") if s.id == sample.id]
    assert (same.context, same.answer_vision) == ("A green bus on a table. ", "green")
    assert control.protocol != b.protocol and control.as_questions().main == "vision"
    assert b.as_questions().main == "flags"


@pytest.mark.parametrize(
    "damage, said",
    [
        ({"answers": {"image_only": "red", "text_only": "blue"}}, "no 'irrelevant_but_plausible'"),
        ({"question": ""}, "'question' should be a text"),
        ({"change_type": "colour"}, "should be object or attribute"),
        ({"image_id": "x"}, "'image_id' should be a whole number"),
    ],
)
def test_a_damaged_entry_of_clash_is_told_with_its_place(tmp_path, damage, said):
    b = made(tmp_path, "clash")
    written(tmp_path / "test.json", {"samples": [clash_sample(0), clash_sample(1, **damage)]})
    with pytest.raises(UserError, match=f"test.json:2.*{said}"):
        b.samples("test")


def test_what_is_missing_is_told_with_where_it_is_had(tmp_path):
    b = made(tmp_path, "clash")
    (tmp_path / "coco/train2017" / f"{502:012d}.jpg").unlink()
    ids, line = b.absent(b.samples("all"))
    assert ids == [f"clash-0002-{502:012d}"] and "7 of 8 found" in line and "train2017.zip" in line
    with pytest.raises(UserError, match="github.com/tpopordanoska/clash"):
        read_node("benchmark", {"type": "clash", "root": str(tmp_path / "none")}).make().samples("test")
    with pytest.raises(UserError, match="multimodal-arbitration-artifact"):
        read_node("benchmark", {"type": "chartqa_conflict", "root": str(tmp_path / "none")}).make().samples("test")


def test_charts_are_asked_at_their_levels(tmp_path):
    b = made(tmp_path, "chartqa_conflict", levels=[0, 4], arm="text")
    clean, medium = (
        [s for s in b.samples("all") if s.task == task and s.tags["item"] == 1] for task in ("clean", "medium")
    )
    assert clean[0].context == chart_item(1)["text_report"] != medium[0].context
    prompt = b.prompt(clean[0], "open")
    text = prompt.messages()[0]["content"][-1]["text"]
    assert text.index("Source A is the textual report below:\n") < text.index("Source B is the attached chart.")
    assert [s.role for s in prompt.segments if s.role == Role.CONTEXT] == [Role.CONTEXT]
    assert [b.judge(clean[0], "open", said) for said in ("#### 3.5", "4", "5", "none")] == [
        *("vision", "text", "unknown", "error"),
    ]
    assert [b.answer(clean[0], "open", d) for d in ("vision", "text")] == ["3.5", "4"]
    by_split = {split: {s.tags["item"] for s in b.samples(split)} for split in ("train", "dev", "test")}
    assert sum(map(len, by_split.values())) == 6 == len(set.union(*by_split.values()))


@pytest.mark.parametrize(
    "damage, said",
    [
        ({"report_source_label": "A"}, "both the same source"),
        ({"conflict_id": 0}, "conflict_id 0 stands in"),
        ({"text_report": " "}, "'text_report' should be a text"),
        ({"chart_source_label": "C"}, "should be A or B"),
    ],
)
def test_a_damaged_chart_is_told_with_its_place(tmp_path, damage, said):
    b = made(tmp_path, "chartqa_conflict")
    lines = [json.dumps(chart_item(0)), json.dumps(chart_item(2, **damage))]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"items.jsonl:2.*{said}"):
        b.samples("test")


def test_levels_of_legibility_are_those_of_the_released_code():
    chart = Image.fromarray(np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8))
    assert degraded(chart, 0, 1) is chart
    assert degraded(chart, 2, 1) == chart.filter(ImageFilter.GaussianBlur(1))
    blurred = np.asarray(chart.filter(ImageFilter.GaussianBlur(2)), dtype=np.float32)
    noisy = (blurred + np.random.RandomState(7).normal(0, 15, blurred.shape)).clip(0, 255).astype(np.uint8)
    assert (np.asarray(degraded(chart, 4, 7)) == noisy).all()
    assert np.asarray(degraded(chart, 5, 7)).std() < noisy.std()
    report = "The value is 4.10 million.\n" * 200
    assert corrupted(report, 0, 3) == report
    for level, share in ((2, 0.08), (4, 0.18), (5, 0.35)):
        made = corrupted(report, level, 3)
        assert made == corrupted(report, level, 3) != corrupted(report, level, 4)
        assert len(report) - len(made) == pytest.approx(share / 2 * len(report.replace(" ", "")), rel=0.2)
        assert made.count("\n") == 200


def test_a_margin_is_measured_where_both_sources_are_shown_and_answers_have_room(tmp_path):
    long = chart_item(2, text_report="The report says that bar 2 has the value 5. " * 40)
    questions = made(tmp_path, "chartqa_conflict", asked="all").as_questions()
    items = [chart_item(0), chart_item(1), long]
    (tmp_path / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    first, second, third = (item.prompt() for item in questions.questions())
    prompts = [first.without(Role.CONTEXT), first.without(Role.IMAGE), second, third]
    measured = questions.inspect(tiny_view(), prompts, [""] * 4)
    assert measured[:2] == [{}, {}] and set(measured[2]) == {"cll_text", "cll_image", "margin"}
    assert measured[3] == {}
    records = []
    for item, more in zip(questions.questions(), ({}, *measured[2:]), strict=True):
        records.append({**questions.record(item, "4"), **more, "text": "4", "prompt_digest": ""})
    assert questions.rows(records, draws=5)[0]["metrics"]["cll_margin"] == pytest.approx(measured[2]["margin"])
    assert "cll_margin" not in questions.rows(records[:1], draws=5)[0]["metrics"]


@pytest.mark.parametrize("make", [clash, chartqa_conflict, words_or_vision, phd])
def test_the_blank_control_shows_a_white_picture_of_the_same_size(tmp_path, make):
    node = make(tmp_path)
    plain, blank = (read_node("benchmark", {**node, "shown": shown}).make() for shown in ("picture", "blank"))
    assert (
        blank.protocol == f"{plain.protocol}/blank" and blank.as_questions().protocol != plain.as_questions().protocol
    )
    one, other = (b.prompt(b.samples("all")[0], b.forms[0]) for b in (plain, blank))
    assert one.messages() == other.messages() and one.images[0].size == other.images[0].size
    assert other.images[0].getcolors() == [(40 * 30, (255, 255, 255))] != one.images[0].getcolors()
    asked = blank.as_questions().questions()[0].prompt()
    assert asked.images[0].getcolors() == [(40 * 30, (255, 255, 255))]


def told(prompt):
    """What a prompt says, and how many pictures it shows."""
    texts = [part["text"] for part in prompt.messages()[0]["content"] if part["type"] == "text"]
    return "".join(texts), len(prompt.images)


def test_a_source_of_clash_alone_is_asked_without_a_word_of_the_other(tmp_path):
    for form, scoring in (("choice", "multiple_choice"), ("open", "open_ended")):
        b = made(tmp_path, "clash", scoring=scoring)
        sample = b.samples("all")[0]
        whole, _ = told(b.prompt(sample, form))
        image, shown = told(b.alone(sample, form, "vision"))
        text, none = told(b.alone(sample, form, "text"))
        assert (shown, none) == (1, 0) and sample.context not in image and sample.context in text
        for other in ("description", "both", "textual", "contradict each other"):
            assert other in whole.replace("*", "") and other not in image
        for other in ("visual", "both", "contradict each other"):
            assert other in whole.replace("*", "") and other not in text
        options = [line for line in whole.split("\n") if line.startswith("(")]
        assert all(option in image and option in text for option in options)
        assert b.prompt(sample, form).without(Role.CONTEXT).digest == b.alone(sample, form, "vision").digest
    asked = made(tmp_path, "clash", alone=True).as_questions()
    assert len(asked.questions()) == 3 * len(made(tmp_path, "clash").as_questions().questions())
    assert asked.protocol.endswith("/alone-too") and "prompt-2" in asked.protocol


def test_a_chart_or_a_report_alone_is_asked_as_released(tmp_path):
    b = made(tmp_path, "chartqa_conflict")
    for sample in b.samples("all")[:2]:  # in either order of the sources
        ending = (
            "Respond with exactly one line in the form '#### <answer>'. After ####, give only the answer value; do not"
            " explain your reasoning."
        )
        chart = f"Question: {sample.question}\n\nUse the attached chart as the only evidence source.\n\n{ending}"
        said = f"Use the following report as the only evidence source:\n{sample.context}"
        report = f"Question: {sample.question}\n\n{said}\n\n{ending}"
        assert told(b.alone(sample, "open", "vision")) == (chart, 1)
        assert told(b.alone(sample, "open", "text")) == (report, 0)
