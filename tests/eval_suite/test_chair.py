"""CHAIR's counts by hand, and what is read as an object."""

from __future__ import annotations

import pytest

from eval_suite.benchmarks.chair import Chair, ChairParams, Vocabulary, plural
from tests.eval_suite.released_files import chair

WORDS = [
    "person, man, woman, child, children, baby",
    "dog, puppy",
    "elephant",
    "dining table, table",
    "hot dog",
    "toilet",
]


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("Two women and a puppy.", ["person", "dog"]),
        ("A baby elephant next to a baby", ["elephant", "person"]),
        ("Hot dogs on the dining table; the table is wide.", ["hot dog", "dining table", "dining table"]),
        ("A toilet seat, a doggy bag, an elephantine thing", ["toilet"]),
        ("home plate", []),
        ("", []),
    ],
)
def test_objects_are_read_by_the_released_words(text, objects):
    assert list(Vocabulary.read(WORDS).mentions(text)) == objects


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"),
        ("wine glass", "wine glasses"),
        ("knife", "knives"),
        ("puppy", "puppies"),
        ("policeman", "policemen"),
    ],
)
def test_plurals(one, many):
    assert plural(one) == many


def test_what_is_not_there_is_counted_by_mention_and_by_caption(tmp_path):
    benchmark = Chair(ChairParams.model_validate({"root": chair(tmp_path / "coco")["root"]}))
    items = {item.id: item for item in benchmark.items()}
    assert items["7"].gold == ["dog", "person"] and items["8"].gold == ["dining table"]
    said = {"7": "A dog, a man and an elephant. The elephant is big.", "8": "A table."}
    records = [{**benchmark.record(items[i], text), "text": text, "prompt_digest": i} for i, text in said.items()]
    found = benchmark.rows(records, draws=5)[0]["metrics"]
    assert found == pytest.approx(
        {"true_captions": 1 / 2, "chair_s": 1 / 2, "chair_i": 2 / 5, "recall": 3 / 3, "objects": 5 / 2}
    )
    mute = [{**benchmark.record(items[i], ""), "text": "", "prompt_digest": i} for i in said]
    assert benchmark.rows(mute, draws=5)[0]["metrics"]["recall"] == 0
