"""The examination after a tuning."""

from __future__ import annotations

import json

import pytest

from eval_suite.scenes.exam import examine
from factory import files
from factory.errors import UserError
from factory.registry import lookup
from factory.run.pipeline import run
from factory.run.tuners import exam as examining
from factory.run.tuners.exam import answerer
from tests.factory.train.test_align import recipe
from tests.tiny import conflict_prompts, tiny_tokenizer, tiny_view


def test_a_prompt_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        examining,
        "answer_prompts",
        lambda view, prompts, *how: asked.append(len(prompts)) or [p.digest for p in prompts],
    )
    answer = answerer(tiny_view(), lookup("benchmark", "scenes")(lookup("benchmark", "scenes").Params()), 3)
    prompts = conflict_prompts(5)
    assert answer([*prompts, prompts[0]]) == [p.digest for p in (*prompts, prompts[0])] and asked == [3, 2]
    assert answer(prompts[2:]) == [p.digest for p in prompts[2:]] and asked == [3, 2]


def test_a_tuned_model_is_examined_on_its_lessons_benchmark(tmp_path):
    tiny_tokenizer(400).save_pretrained(tmp_path / "llm")
    lessons = {"type": "scenes", "options": 0.0, "scale": 2}
    spec = recipe(
        tmp_path,
        "examined",
        {
            "tuner": {"type": "lora", "rank": 2},
            "data": {"lessons": lessons, "take": 8, "max_tokens": None},
            "steps": 1,
            "exam": 1,
        },
    )
    folder = run(spec)
    exam = files.read_json(folder / "tuned" / "exam.json")
    assert set(exam) == {
        f"{name} (open)"
        for name in (
            "image_only",
            "text_only",
            "obeys_vision",
            "obeys_text",
            "prefers_vision",
            "prefers_vision_by_visual_tier",
            "prefers_vision_by_text_tier",
        )
    }
    assert all(share in (0, 1) for name, share in exam["image_only (open)"].items() if name != "all")
    learnt = (folder / "tune" / "summary.json").stat().st_mtime_ns
    before = (folder / "exam" / "summary.json").stat().st_mtime_ns
    run(spec)
    assert (folder / "tune" / "summary.json").stat().st_mtime_ns == learnt, (
        "an exam of another size trains nothing again"
    )
    assert (folder / "exam" / "summary.json").stat().st_mtime_ns == before and json.loads(
        (folder / "tuned" / "exam.json").read_text()
    ) == exam


def test_no_exam_without_a_benchmark(tmp_path):
    with pytest.raises(UserError, match="has an exam, which needs a benchmark"):
        recipe(tmp_path, "x", {"tuner": "lora", "data": {"photos": "p"}, "exam": 3})


def test_larger_pictures_show_the_same_scene():
    """The exam at another scale asks the same questions and expects the same answers."""

    def asked(scale: int) -> list:
        seen = []
        examine(lambda prompts: seen.extend(prompts) or ["red"] * len(prompts), 1, scale=scale, asked=("open",))
        return seen

    small, large = asked(1), asked(3)
    assert [[s.text for s in p.segments] for p in small] == [[s.text for s in p.segments] for p in large]
    assert {p.images[0].size for p in small if p.images} == {(48, 48)} and {
        p.images[0].size for p in large if p.images
    } == {(144, 144)}
