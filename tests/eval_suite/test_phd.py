"""PhD: its four modes as they are asked, its index, the other answer that a context gives, and its damaged files."""

from __future__ import annotations

import pytest

from eval_suite.benchmarks.phd import FOLLOW
from factory.errors import UserError
from factory.recipe.nodes import read_node
from tests.eval_suite.released_conflicts import phd, phd_entry, phd_odd
from tests.eval_suite.released_files import written


def made(root, n=8, **more):
    return read_node("benchmark", {**phd(root, n), **more}).make()


def written_of(prompt):
    return prompt.messages()[0]["content"][-1]["text"]


def scored(questions, answer):
    records = []
    for item in questions.questions():
        text = answer(item)
        records.append({**questions.record(item, text), "text": text, "prompt_digest": ""})
    return questions.rows(records, draws=5)


@pytest.mark.parametrize(
    "mode, first",
    [
        ("base", "Is the cat red?"),
        ("iac", f"Some like a green cat. {FOLLOW} Is the cat red?"),
        ("icc", f"The cat in the image is green. {FOLLOW} Is the cat red?"),
        ("ccs", "Is there a sausage in the peel?"),
    ],
)
def test_a_mode_is_asked_as_released(tmp_path, mode, first):
    items = made(tmp_path, mode=mode).as_questions().questions()
    assert len(items) == (4 if mode == "ccs" else 16) and [i.gold for i in items[:2]] == ["yes", "no"]
    prompt = items[0].prompt()
    assert written_of(prompt) == first and len(prompt.images) == 1
    assert items[0].unit == items[1].unit != items[2].unit
    assert items[0].images[0].name == ("0.png" if mode == "ccs" else f"COCO_train2014_{700:012d}.jpg")


def test_the_index_is_the_harmonic_mean_of_the_recalls(tmp_path):
    questions = made(tmp_path, mode="base").as_questions()
    texts = {
        "yes": iter(["Yes.", "yes, it is", "No", "maybe", "Yes", "no", "Yes", "Yes"]),
        "no": iter(["No."] * 2 + ["Yes"] * 6),
    }
    total, *tasks = scored(questions, lambda item: next(texts[item.gold]))
    yes, no = 5 / 8, 2 / 8
    assert total["metrics"] == pytest.approx(
        {"index": 2 * yes * no / (yes + no), "recall_yes": yes, "recall_no": no, "accuracy": 7 / 16}
    )
    assert total["parse_failure_rate"] == 1 / 16 and total["main"] == "index"
    assert [row["task"] for row in tasks] == ["attribute", "object", "counting", "sentiment", "positional"]
    assert scored(questions, lambda item: "no")[0]["metrics"]["index"] == 0


def test_an_incorrect_context_gives_the_other_answer(tmp_path):
    b = made(tmp_path)
    one, two = (s for s in b.samples("all") if s.tags["picture"] == "701")
    assert (one.question, one.answer_vision, one.answer_text) == ("Is the bus green?", "yes", "no")
    assert (two.question, two.answer_vision, two.answer_text) == ("Is the bus blue?", "no", "yes")
    assert written_of(b.prompt(one, "open")) == f"The bus in the image is blue. {FOLLOW} Is the bus green?"
    assert written_of(b.alone(one, "open", "vision")) == "Is the bus green?"
    text = b.alone(one, "open", "text")
    assert written_of(text) == "The bus in the image is blue. Is the bus green?" and text.images == []
    untold = made(tmp_path, told=False)
    assert written_of(untold.prompt(one, "open")) == "The bus in the image is blue. Is the bus green?"
    assert untold.protocol != b.protocol
    said = ("Yes", "no, it is blue", "The context contradicts the image.", "a bus", "...", "I know nothing of it")
    verdicts = ["vision", "text", "flags", "unknown", "error", "unknown"]
    assert [b.judge(one, "open", text) for text in said] == verdicts
    assert [b.answer(one, "open", d) for d in ("vision", "text")] == ["Yes", "No"]


def test_pictures_are_drawn_by_task_into_one_split_each(tmp_path):
    b = made(tmp_path, 20, per_task=3)
    of = {split: b.samples(split) for split in ("train", "dev", "test", "all")}
    assert len(of["all"]) == 5 * 3 * 2 and sum(len(of[s]) for s in ("train", "dev", "test")) == 30
    shown = [{s.tags["picture"] for s in of[split]} for split in ("train", "dev", "test")]
    assert not (shown[0] & shown[1] or shown[0] & shown[2] or shown[1] & shown[2])
    for split in ("train", "dev", "test"):
        assert sum(s.answer_vision == "yes" for s in of[split]) * 2 == len(of[split])
    asked = made(tmp_path, 20, per_task=3, asked="test").as_questions()
    assert len(asked.questions()) == len(of["test"]) and asked.protocol == "phd/prompt-2/icc/test-asked"


@pytest.mark.parametrize("mode", ["base", "iac", "ccs"])
def test_modes_without_a_contradiction_are_no_data_to_steer_on(tmp_path, mode):
    with pytest.raises(UserError, match=f"mode {mode} has no text that contradicts"):
        made(tmp_path, mode=mode).samples("test")


def test_older_files_call_the_inaccurate_context_sec(tmp_path):
    b = made(tmp_path, mode="iac")
    written(tmp_path / "data.json", [phd_entry(0, context={"sec": "Some say so.", "icc": "no"})])
    assert written_of(b.as_questions().questions()[0].prompt()).startswith("Some say so. ")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"yes_question": ""}, "'yes_question' should be a text"),
        ({"no_question": None}, "'no_question' should be a text, and is None"),
        ({"context": {"iac": "x"}}, "an entry has no 'icc'"),
        ({"context": "x"}, "fields with names should be"),
        ({"image_id": ["7"]}, "'image_id' should be a name or a number"),
        ({"task": 3}, "'task' should be a text"),
    ],
)
def test_a_damaged_entry_is_told_with_its_place(tmp_path, change, said):
    b = made(tmp_path)
    written(tmp_path / "data.json", [phd_entry(0), phd_entry(1, **change)])
    with pytest.raises(UserError, match=f"data.json:2.*{said}"):
        b.samples("test")


def test_what_is_missing_is_told_with_where_it_is_had(tmp_path):
    b = made(tmp_path)
    (tmp_path / f"images/train2014/COCO_train2014_{702:012d}.jpg").unlink()
    ids, line = b.absent(b.samples("all"))
    assert ids == ["phd-00002-yes", "phd-00002-no"] and "7 of 8 found" in line and "cocodataset.org" in line
    items = made(tmp_path / "other", mode="ccs").as_questions().questions()
    items[0].images[0].unlink()
    with pytest.raises(OSError, match="no picture 0 in"):
        items[0].prompt()
    with pytest.raises(UserError, match="github.com/jiazhen-code/PhD"):
        read_node("benchmark", {"type": "phd", "root": str(tmp_path / "none")}).make().samples("test")
    written(tmp_path / "data.json", [phd_odd(0)])
    with pytest.raises(UserError, match="has no entry of mode icc"):
        read_node("benchmark", {"type": "phd", "root": str(tmp_path)}).make().samples("test")
