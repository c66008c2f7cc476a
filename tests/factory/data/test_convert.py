"""Converters: files as released to records that the reader of conversations takes."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from factory import cli
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.registry import available, lookup

PROBLEMS = {
    "1": {
        "question": "Which is cold?",
        "choices": ["ice", "fire"],
        "answer": 0,
        "hint": "Think of winter.",
        "image": "image.png",
        "split": "train",
    },
    "2": {"question": "No picture?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None, "split": "train"},
    "3": {
        "question": "What?",
        "choices": ["x", "y", "z"],
        "answer": 2,
        "hint": "",
        "image": "image.png",
        "split": "train",
    },
}
VIZWIZ = [
    {
        "image": "VizWiz_train_1.jpg",
        "question": "Colour?",
        "answers": [{"answer": w, "answer_confidence": "yes"} for w in ["red", "blue", "blue", "red", "blue"]],
    },
    {
        "image": "VizWiz_train_2.jpg",
        "question": "Which?",
        "answers": [{"answer": "unanswerable", "answer_confidence": "no"}] * 10,
    },
]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def iconqa(folder, task, item, number="12"):
    picture(folder / "train" / task / number / "image.png")
    (folder / "train" / task / number / "data.json").write_text(json.dumps(item))


@pytest.fixture
def released(tmp_path):
    sqa, vizwiz, icons = tmp_path / "scienceqa", tmp_path / "vizwiz", tmp_path / "iconqa" / "iconqa_data" / "iconqa"
    for pid in ("1", "3"):
        picture(sqa / "images" / "train" / pid / "image.png")
    (sqa / "problems.json").write_text(json.dumps(PROBLEMS))
    (sqa / "pid_splits.json").write_text(json.dumps({"train": ["3", "1", "2"], "test": []}))
    for item in VIZWIZ:
        picture(vizwiz / "train" / item["image"])
    (vizwiz / "train.json").write_text(json.dumps(VIZWIZ))
    iconqa(icons, "choose_txt", {"question": "What shape?", "choices": ["circle", "square"], "answer": 1})
    iconqa(icons, "fill_in_blank", {"question": "There are (_) stars.", "answer": 7})
    return tmp_path


LETTER = "\nAnswer with the option's letter from the given choices directly."
UNSURE = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\nAnswer the question using a single"
    " word or phrase."
)
EXPECTED = {
    "scienceqa": [
        ("What?\nA. x\nB. y\nC. z" + LETTER, "C"),
        ("Context: Think of winter.\nWhich is cold?\nA. ice\nB. fire" + LETTER, "A"),
    ],
    "vizwiz": [("Colour?" + UNSURE, "blue"), ("Which?" + UNSURE, "Unanswerable")],
    "iconqa_txt": [
        ("What shape? Choices: circle, square. Choose an option from the choices to answer the question.", "square")
    ],
    "iconqa_txt_index": [
        ("What shape? Choices: circle, square. Choose an option from the choices to answer the question.", "1")
    ],
    "iconqa_blank": [("There are (_) stars. Fill in the blanks in (_) or answer this question", "7")],
}


def test_every_converter_is_tested():
    assert {entry.name for entry in available("converter")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_released_files_become_samples(released, name, capsys):
    folder, out = released / name.partition("_")[0], released / "out.jsonl"
    assert cli.main(["convert", name, str(folder), str(out)]) == 0
    assert f"{len(EXPECTED[name])} samples" in capsys.readouterr().out
    source = ConversationFile(out, folder, released / "cache")
    found = [source[i].prompt for i in range(len(source))]
    assert [(p.segments[1].text, p.segments[2].text) for p in found] == EXPECTED[name]
    assert all(len(p.images) == 1 for p in found)


def test_a_missing_file_or_split_is_told(released, tmp_path):
    with pytest.raises(UserError, match="problems.json: not found"):
        list(lookup("converter", "scienceqa")({}).records(tmp_path, "train"))
    assert cli.main(["convert", "scienceqa", str(released / "scienceqa"), str(tmp_path / "o"), "--split", "test"]) == 2
