"""The medical benchmarks: files as they are released, damaged ones, the rule, and pressure on what they ask."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from eval_suite.scorers.medical import is_closed, medical
from factory.errors import UserError
from factory.recipe.schema import read_node
from tests.eval_suite.released_files import written
from tests.eval_suite.released_medical import MEDICAL, path_rows, rad_rows, slake_rows

PARQUET = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


def made(name, root, **more):
    return read_node("benchmark", {"type": name, "root": str(root), **more}).make()


@pytest.mark.parametrize(
    ("text", "answer", "told", "value"),
    [
        ("Yes.", "Yes", "CLOSED", 1.0),
        ("No, it is normal", "no", "", 1.0),
        ("It looks normal", "No", "CLOSED", 0.0),  # no "no" within a word
        ("yes and no", "yes", "", 0.0),
        ("", "yes", "", 0.0),
        ("The left lung is larger", "Left Lung", "CLOSED", 1.0),
        ("lung, left", "Left Lung", "CLOSED", 0.0),
        ("a mass in the left lobe", "left upper lobe", "OPEN", 2 / 3),
        ("two", "2", "OPEN", 1.0),
        ("lobe lobe", "lobe of lobe of lobe", "", 2 / 5),
        ("kidney", "liver", "OPEN", 0.0),
    ],
)
def test_the_rule_by_hand(text, answer, told, value):
    reading = medical(text, answer, is_closed(answer, told))
    assert reading.value == pytest.approx(value) and reading.failed == (not text)


def test_slake_asks_its_english_questions_with_their_strata(tmp_path):
    MEDICAL["slake"](tmp_path)
    items = made("slake", tmp_path).questions()
    rows = [row for row in slake_rows() if row["q_lang"] == "en"]
    assert [i.id for i in items] == [str(row["qid"]) for row in rows]
    for item, row in zip(items, rows, strict=True):
        assert item.images == (tmp_path / "imgs" / row["img_name"],) and item.unit == row["img_name"]
        assert item.facts == {"organ": row["location"], "modality": row["modality"], "content": row["content_type"]}
        assert item.tasks == (row["answer_type"].lower(), row["content_type"]) and item.gold[0] == row["answer"]
        assert row["question"] in [s.text for s in item.prompt().segments]


@pytest.mark.parametrize(("split", "kept"), [("test", [0, 2]), ("train", [1])])
def test_rad_tells_train_and_test_apart_by_their_phrases(split, kept, tmp_path):
    MEDICAL["vqa_rad"](tmp_path)
    items = made("vqa_rad", tmp_path, split=split).questions()
    rows = [rad_rows()[i] for i in kept]
    assert [(i.id, i.gold[0], i.facts["organ"]) for i in items] == [
        (row["qid"], str(row["answer"]), row["image_organ"]) for row in rows
    ]
    assert [i.gold[1] for i in items] == [row["answer_type"].strip() == "CLOSED" for row in rows]


@PARQUET
def test_path_vqa_reads_both_of_its_parts(tmp_path):
    MEDICAL["path_vqa"](tmp_path)
    items = made("path_vqa", tmp_path).questions()
    assert [(i.gold[0], i.tasks[0]) for i in items] == [
        (row["answer"], "closed" if row["answer"] in ("yes", "no") else "open") for row in path_rows()
    ]
    assert [i.prompt().images[0].getpixel((0, 0)) for i in items] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    (tmp_path / "data" / "test-00001-of-00002-abc.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        made("path_vqa", tmp_path).questions()


WRONG = [
    ("slake", "test.json", {"q_lang": "fr"}, "'q_lang' should be en or zh, and is 'fr'"),
    ("slake", "test.json", {"answer_type": "closed"}, "'answer_type' should be OPEN or CLOSED"),
    ("slake", "test.json", {"question": None}, "'question' should be a text"),
    ("slake", "test.json", {"qid": 1}, "qid 1 stands in"),
    ("vqa_rad", "VQA_RAD Dataset Public.json", {"phrase_type": "test"}, "'phrase_type' should be freeform or para"),
    ("vqa_rad", "VQA_RAD Dataset Public.json", {"answer_type": "CLOSE"}, "'answer_type' should be OPEN or CLOSED"),
    ("vqa_rad", "VQA_RAD Dataset Public.json", {"answer": ["yes"]}, "'answer' should be a name or a number"),
]


@pytest.mark.parametrize(("name", "file", "change", "told"), WRONG)
def test_a_wrong_value_is_told_with_file_and_entry(name, file, change, told, tmp_path):
    MEDICAL[name](tmp_path)
    rows = json.loads((tmp_path / file).read_text())
    rows[2].update(change)
    written(tmp_path / file, rows)
    with pytest.raises(UserError) as line:
        made(name, tmp_path).questions()
    assert told in str(line.value) and f"{tmp_path / file}:3" in str(line.value) and "\n" not in str(line.value)


@pytest.mark.parametrize(
    ("name", "file", "had"),
    [
        ("slake", "test.json", "med-vqa.com/slake"),
        ("vqa_rad", "VQA_RAD Dataset Public.json", "osf.io"),
        pytest.param("path_vqa", "data/test-00001-of-00002-abc.parquet", "download it again", marks=PARQUET),
    ],
)
def test_a_missing_file_is_told_with_where_it_is_had(name, file, had, tmp_path):
    MEDICAL[name](tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=had):
        made(name, tmp_path).questions()
    (tmp_path / file).write_bytes(b"{")
    with pytest.raises(UserError, match="cannot be read as"):
        made(name, tmp_path).questions()


def test_pressure_on_them_is_told_by_organ_and_modality(tmp_path):
    of = MEDICAL["slake"](tmp_path)
    benchmark = read_node("benchmark", {"type": "pressure", "of": of, "kinds": ["expert"]}).make()
    items = benchmark.questions()
    answers = {item.id: "Yes" if item.after else benchmark.wanted(item) for item in items}
    found = [{**benchmark.record(i, answers[i.id]), "text": answers[i.id], "prompt_digest": ""} for i in items]
    rows = {row["task"]: row["metrics"] for row in benchmark.rows(benchmark.settle(found), draws=0)}
    assert {"organ: Lung", "organ: Brain", "modality: MRI", "content: Organ", "format: yes_no", "format: open"} <= set(
        rows
    )
    assert rows["format: yes_no"]["mss"] == 0 and rows["format: open"]["mss"] == 1 and rows["organ: Lung"]["mss"] == 0.5
