"""Words or Vision: its released files, whole and damaged, its prompts, and the preference for text."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from eval_suite.elsewhere import Fields, answers_of
from eval_suite.rescore import matched
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.nodes import read_node
from tests.eval_suite.released_conflicts import WORDS_FOLDERS, lines, words_or_vision, words_sample
from tests.eval_suite.released_files import blob, parquet_file
from tests.released import RELEASED

PARQUET = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
TEXTS = "gpt-4o-2024-05-13/contradict_stat.jsonl"
CAUTION = (
    "Here are some additional information which are text descriptions based on the image to assist you for answering"
    " the later question. Note, the information could be irrelevant, missing some information or inaccurate, please use"
    " it with caution: "
)


def made(root, subset="VQAv2", n=8, **more):
    return read_node("benchmark", {**words_or_vision(root, n, subset), **more}).make()


def written(prompt):
    return prompt.messages()[0]["content"][-1]["text"]


def test_a_question_is_asked_as_released(tmp_path):
    b = made(tmp_path)
    sample = next(s for s in b.samples("all") if s.id == "wov-501002")
    assert (sample.answer_vision, sample.answer_text, sample.task) == ("green", "blue", "other")
    asked = "What color is the bus? Please only output the answer with a single word or phrase."
    whole = f"{CAUTION}The bus in the picture is blue.\n----------\n{asked}"
    prompt = b.prompt(sample, "open")
    assert written(prompt) == whole and prompt.images[0].getpixel((20, 15))[1] > 100  # a green picture
    assert [s.text for s in prompt.segments if s.role == Role.CONTEXT] == ["The bus in the picture is blue."]
    assert written(b.alone(sample, "open", "vision")) == asked and len(b.alone(sample, "open", "vision").images) == 1
    assert written(b.alone(sample, "open", "text")) == whole and b.alone(sample, "open", "text").images == []
    texts = {"match": "The bus in the picture is green.", "irrelevant": " Text 1 .\n"}
    for name, text in texts.items():
        control = made(tmp_path, text=name)
        same = next(s for s in control.samples("all") if s.id == sample.id)
        assert same.context == text and (same.answer_vision, same.answer_text) == ("green", "blue")
        assert control.protocol != b.protocol
    assert f"caution:  Text 1 .\n\n----------\n{asked}" in written(control.prompt(same, "open"))
    judged = [b.judge(sample, "open", text) for text in ("Green.", "It is blue", "green or blue", "red", " ")]
    assert judged == ["vision", "text", "other", "unknown", "error"]
    assert [b.answer(sample, "open", d) for d in ("vision", "text")] == ["green", "blue"]


def test_pictures_are_in_one_split_each(tmp_path):
    b = made(tmp_path, n=20)
    of = {split: {s.tags["picture"] for s in b.samples(split)} for split in ("train", "dev", "test")}
    assert sum(map(len, of.values())) == 20 == len(set.union(*of.values())) and len(of["test"]) == 8


def test_the_preference_is_between_the_models_own_answers(tmp_path):
    questions = made(tmp_path, n=3, asked="all").as_questions()
    items = questions.questions()
    assert len(items) == 9 and items[0].images and not items[2].images
    told = {  # both, vision, text; right answers are red, green, blue, corrupted ones green, blue, white
        "wov-500002": ("green", "red", "green."),  # the text, known from either
        "wov-501002": ("green", "green", "green"),  # the same from all three: not known from the text
        "wov-502002": ("blue", "blue.", "white"),  # the image, known
    }
    names = {"both": 0, "vision": 1, "text": 2}
    records = []
    for item in items:
        text = told[item.facts["conflict"]][names[item.facts.get("alone", "both")]]
        records.append({**questions.record(item, text), "text": text, "prompt_digest": item.id})
    row = questions.rows(records, draws=5)[0]
    assert row["metrics"]["vision"] == pytest.approx(2 / 3) and row["metrics"]["text"] == pytest.approx(1 / 3)
    assert row["metrics"]["text_preference"] == 0.5
    assert (row["metrics"]["known_n"], row["metrics"]["known_ratio"]) == (2, 0.5)
    assert row["metrics"]["known"] == pytest.approx(2 / 3) and "known_n" not in row["ci"]
    plain = made(tmp_path, n=3, asked="all", alone=False).as_questions()
    assert len(plain.questions()) == 3 and plain.protocol != questions.protocol


@pytest.mark.parametrize(
    "change, said",
    [
        ({"question_id": 500002}, "question_id 500002 stands in"),
        ({"question_id": 999002}, "question 999002 has no text in irrel_wikitext.jsonl"),
        ({"changed_ans": []}, "'changed_ans' should be a list of texts"),
        ({"changed_ans": [" "]}, "'changed_ans' says nothing"),
        ({"response": [""]}, "'response' says nothing"),
        ({"original_ans": None}, "'original_ans' should be a list of texts, and is None"),
        ({"supp_stat": "text"}, "'supp_stat' should be a list of texts"),
        ({"question": ""}, "'question' should be a text"),
    ],
)
def test_a_damaged_question_is_told_with_its_place(tmp_path, change, said):
    b = made(tmp_path)
    path = tmp_path / "raw_code/syth_response" / WORDS_FOLDERS["VQAv2"] / TEXTS
    lines(path, [words_sample(0), words_sample(1, **change)])
    with pytest.raises(UserError, match=f"contradict_stat.jsonl:2.*{said}"):
        b.samples("test")


def test_what_is_missing_is_told_with_where_it_is_had(tmp_path):
    b = made(tmp_path)
    (tmp_path / "coco/val2014" / f"COCO_val2014_{502:012d}.jpg").unlink()
    ids, line = b.absent(b.samples("all"))
    assert ids == ["wov-502002"] and "7 of 8 found" in line and "dal-289/word_or_vision" in line
    with pytest.raises(UserError, match="github.com/d-ailin/blind-faith-in-text"):
        read_node("benchmark", {"type": "words_or_vision", "root": str(tmp_path / "none")}).make().samples("test")
    (tmp_path / "raw_code/syth_response/lmms-lab/VQAv2/irrel_wikitext.jsonl").unlink()
    with pytest.raises(UserError, match="irrel_wikitext.jsonl.*not found"):
        read_node("benchmark", {**b.params.model_dump(), "type": "words_or_vision"}).make().samples("test")


def test_answers_that_are_the_same_by_the_rule_are_left_out_and_said(tmp_path):
    b = made(tmp_path)
    path = tmp_path / "raw_code/syth_response" / WORDS_FOLDERS["VQAv2"] / TEXTS
    alike = [words_sample(0, changed_ans=["the red one"]), *(words_sample(i) for i in range(1, 5))]
    lines(path, alike)
    assert len(b.samples("all")) == 4
    assert b.warnings == ("words_or_vision: 1 of 5 questions left out: their two answers are the same by its rule",)


@PARQUET
def test_documents_are_shown_from_the_hubs_parquet_files(tmp_path):
    words_or_vision(tmp_path, 4, "DocVQA")
    rows = []
    for i in (2, 0, 1):
        s = words_sample(i, "DocVQA")
        full = f"{CAUTION}{s['response'][0]}\n----------\n{s['question']} Please only output the answer directly."
        about = {"question_id": "", "question": s["question"], "answers": f"['{s['original_ans'][0]}', 'scarlet']"}
        rows += [{**about, "image": blob(i), "full_prompt": full, "text_type": "corrupted"}]
        rows += [{**about, "image": blob(4), "full_prompt": full, "text_type": "match"}]
    parquet_file(tmp_path / "hub/data/DocVQA-00000-of-00001.parquet", rows)
    b = made(tmp_path, "DocVQA", 4, images=str(tmp_path / "hub"))
    ids, line = b.absent(b.samples("all"))
    assert ids == ["wov-603"] and "3 of 4 found" in line
    sample = next(s for s in b.samples("all") if s.id == "wov-600")
    assert b.prompt(sample, "open").images[0].getpixel((0, 0)) == (255, 0, 0)
    assert b.judge(sample, "open", "scarlet") == "vision" and sample.task == "document"
    assert written(b.alone(sample, "open", "vision")).endswith("? Please only output the answer directly.")
    lost = next(s for s in b.samples("all") if s.id == "wov-603")
    with pytest.raises(OSError, match="no picture of wov-603"):
        b.prompt(lost, "open")
    rows[2]["answers"] = "['red'"
    parquet_file(tmp_path / "hub/data/DocVQA-00000-of-00001.parquet", rows)
    with pytest.raises(UserError, match="DocVQA-00000-of-00001.parquet:3: 'answers' should be a list of texts"):
        made(tmp_path, "DocVQA", 4, images=str(tmp_path / "hub")).samples("test")


def test_released_answers_are_read_as_they_are(tmp_path):
    b = made(tmp_path, n=3)
    rows = [
        {"question": "q", "question_id": 500002, "input": "…", "output": "Red", "answers": ["red"], "logprobs": "[]"},
        {"question_id": 501002, "pred_answer": "blue", "gt_answers": ["green"], "is_correct": False, "per_acc": 0.0},
        {"question_id": "q/['x']", "pred_answer": "blue", "gt_answers": ["x"], "is_correct": True},
    ]
    found = matched(b, answers_of(lines(tmp_path / "out.jsonl", rows)), Fields())
    assert [(t.sample, t.verdict, t.found, t.released) for t in found.told] == [
        ("wov-500002", "vision", True, None),
        ("wov-501002", "text", False, False),
    ]
    assert len(found.left) == 1 and found.unanswered == 1
    lines(tmp_path / "bad.jsonl", [{**rows[1], "is_correct": "no"}])
    with pytest.raises(UserError, match="bad.jsonl:1: 'is_correct' should be true or false"):
        matched(b, answers_of(tmp_path / "bad.jsonl"), Fields())


ANSWERS = RELEASED / "blind-faith-in-text"
COUNTS = {  # of get_modality_prefer_score at 4208bfb on the 1,000 released answers each: image, text, same
    ("VQAv2", "llava-hf-llava-1.5-7b-hf"): [(140, 647, 141), (46, 275, 628), (582, 26, 310)],
    ("VQAv2", "llava-hf-llava-v1.6-vicuna-7b-hf"): [(118, 697, 128), (40, 251, 675), (606, 30, 293)],
    ("VQAv2", "gpt-4.1-mini-2025-04-14"): [(321, 152, 68), (115, 299, 317), (474, 48, 130)],
    ("VQAv2", "claude-3-7-sonnet-20250219"): [(434, 46, 19), (214, 172, 189), (500, 11, 36)],
    ("DocVQA", "llava-hf-llava-1.5-7b-hf"): [(30, 678, 26), (44, 668, 79), (450, 40, 72)],
    ("DocVQA", "llava-hf-llava-v1.6-vicuna-7b-hf"): [(98, 703, 41), (70, 464, 360), (704, 5, 31)],
}


@pytest.mark.skipif(not ANSWERS.is_dir(), reason="the released repository is not here")
@pytest.mark.parametrize("subset, model", COUNTS)
def test_the_released_answers_give_the_released_counts(subset, model):
    from eval_suite.scorers.words_or_vision import follows

    folder = ANSWERS / "raw_code/outputs" / WORDS_FOLDERS[subset] / model
    own = {p.name: {r["question_id"]: r["output"] for r in map(json.loads, p.open())} for p in folder.glob("*.jsonl")}
    image = own["t=0_seed=0.jsonl"]
    for source, wanted in zip(("contradict", "supp", "irrel"), COUNTS[subset, model], strict=True):
        both, words = (
            next(v for name, v in own.items() if f"textsrc={source}" in name and ("wo-img" in name) == alone)
            for alone in (False, True)
        )
        found = [follows(both[q], image[q], words[q]) for q in both]
        assert tuple(found.count(kind) for kind in ("image", "text", "same")) == wanted
