"""Drawn captions: a picture's own caption is true and whole, and lessons alone show what goes together."""

from __future__ import annotations

import pytest

from eval_suite.benchmarks.scene_captions import COMPANION, SceneCaptions, SceneCaptionsParams
from eval_suite.scenes.draw import SHAPES
from factory.data.prompt import Role


def scored(benchmark, texts):
    """Metrics of captions of the first items."""
    items = benchmark.items()[: len(texts)]
    records = [
        {**benchmark.record(item, text), "text": text, "prompt_digest": item.id}
        for item, text in zip(items, texts, strict=True)
    ]
    return benchmark.rows(records, draws=5)[0]["metrics"]


def test_captions_are_counted_by_hand():
    benchmark = SceneCaptions(SceneCaptionsParams(take=3, most=2, seed=4))
    golds = [item.gold for item in benchmark.items()]
    absent = next(shape for shape in SHAPES if shape not in golds[1])
    whole = [" and ".join(f"red {shape}" for shape in gold) for gold in golds]
    found = scored(benchmark, [whole[0], f"{whole[1]} and blue {absent}", ""])
    named = len(golds[0]) + len(golds[1])
    assert found["chair_i"] == pytest.approx(1 / (named + 1)) and found["chair_s"] == pytest.approx(1 / 3)
    assert found["true_captions"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(named / (named + len(golds[2])))


def test_a_lessons_caption_names_what_is_drawn_and_companions_come_together():
    taught = SceneCaptions(SceneCaptionsParams(most=4, together=1.0))
    for index in range(12):
        image, question, answer = taught.lesson(index, 1, 12).segments
        said = [phrase.split()[1] for phrase in answer.text.split(" and ")]
        assert (image.role, question.role, answer.role) == (Role.IMAGE, Role.QUESTION, Role.ANSWER)
        assert 1 <= len(said) <= 4 and len(set(said)) == len(said)
        assert sum(COMPANION[shape] not in said for shape in said) == len(said) % 2
    assert [i.prompt().images[0].tobytes() for i in taught.items()[:2]] == [
        i.prompt().images[0].tobytes() for i in SceneCaptions(SceneCaptionsParams(most=4)).items()[:2]
    ], "questions' pictures know nothing of companions"
