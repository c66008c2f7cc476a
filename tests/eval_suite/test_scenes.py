"""Scenes: the same spec is the same scene, splits share nothing, pictures show what they say, contexts claim the other
answer.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from random import Random

import numpy as np
import pytest

from eval_suite.conflict import CHOOSE, DIRECT, build_prompt, options
from eval_suite.scenes.curriculum import Mix, Practice, draw_spec, lesson, moved, worked_example_lesson
from eval_suite.scenes.draw import VISUAL_TIERS, Canvas
from eval_suite.scenes.language import CLOSERS, GRAMMARS, HOLDERS, KNOWLEDGE, OPENERS, TEXT_TIERS, write_context
from eval_suite.scenes.world import ANSWERS, GRID, SPLITS, TASKS, SceneSpec, paint, place_split, scene, specs
from factory.data.prompt import Role
from factory.registry import lookup

CELLS = list(range(GRID * GRID))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_spec_is_the_same_scene(task):
    for tier in range(4):
        a, b = (scene(SceneSpec(task, "test", 7, tier, 3 - tier)) for _ in range(2))
        assert a.load_image().tobytes() == b.load_image().tobytes() and a.load_image().size == (48, 48)
        assert (a.context, a.question, a.answer_vision, a.answer_text, a.tags) == (
            b.context,
            b.question,
            b.answer_vision,
            b.answer_text,
            b.tags,
        )


@pytest.mark.parametrize("change", [{"seed": 8}, {"split": "train"}, {"visual_tier": 3}])
def test_another_spec_is_another_picture(change):
    spec = {"task": "color", "split": "test", "seed": 7, "visual_tier": 0, "text_tier": 0}
    assert (
        scene(SceneSpec(**spec)).load_image().tobytes() != scene(SceneSpec(**{**spec, **change})).load_image().tobytes()
    )


def skeletons(task: str, split: str) -> set[str]:
    """Sentence forms of a split with every holder and known thing replaced by one letter."""
    grammar, found = GRAMMARS[task], set()
    chosen = slice(0, -2) if split == "train" else slice(-2, -1) if split == "dev" else slice(-1, None)
    for forms in (grammar.says, grammar.same, grammar.known):
        found |= {form.replace("{k}", "{o}") for form in forms[chosen]}
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("a, b", list(combinations(SPLITS, 2)))
def test_splits_share_no_sentence_form(task, a, b):
    assert not skeletons(task, a) & skeletons(task, b)


def test_a_split_writes_in_its_own_forms_only():
    for task, tier in product(TASKS, range(TEXT_TIERS)):
        subject, value, *decoys = ("stars" if task == "counting" else "the star"), *ANSWERS[task]
        for split in SPLITS:
            text = write_context(task, subject, value, tier, split, Random(5), tuple(decoys))
            names = sorted(
                {*HOLDERS["thing"], *HOLDERS["person"], *HOLDERS["group"], KNOWLEDGE[value], subject},
                key=len,
                reverse=True,
            )
            hidden = re.sub("|".join(re.escape(n) for n in names), "X", text)
            forms = {
                re.sub(r"\{[sok]\}", "X", f).replace("{v}", v) for f in skeletons(task, split) for v in ANSWERS[task]
            }
            for part in OPENERS + CLOSERS:
                hidden = hidden.replace(part, "", 1) if part else hidden
            left = hidden
            for form in sorted(forms, key=len, reverse=True):
                left = left.replace(form, "")
            assert not left.strip(), (split, text, left)


def test_openers_and_closers_are_split_too():
    for forms in (OPENERS, CLOSERS):
        assert forms[-1] not in forms[:-1] and forms[-2] not in forms[:-2]


@pytest.mark.parametrize("task", [t for t in TASKS if t != "positional_reasoning"])
def test_splits_share_no_place_of_an_answer(task):
    for answer in ANSWERS[task]:
        places = [{cell for cell in CELLS if place_split(answer, cell) == split} for split in SPLITS]
        assert all(places) and not any(a & b for a, b in combinations(places, 2))
        assert set().union(*places) == set(CELLS) and len(places[0]) > 8


def on_side(answer: str) -> list[int]:
    """The middle cells of a side of the picture."""
    edge, inner = {"left": 0, "right": GRID - 1, "above": 0, "below": GRID - 1}[answer], range(1, GRID - 1)
    return [i * GRID + edge if answer in ("left", "right") else edge * GRID + i for i in inner]


def cell_at(x: float, y: float, r: float) -> int:
    """The cell nearest to a point, of the lattice over the area in which a target of half-size ``r`` fits."""
    low = 1.15 * r + 1
    row, column = (round((v - low) / (48 - 2 * low) * (GRID - 1)) for v in (y, x))
    return row * GRID + column


def test_targets_stand_where_their_split_allows(monkeypatch):
    """A shape on a side at a place of its split there where there is one, every other target always."""
    shapes, bars, alone = [], [], 0
    monkeypatch.setattr(Canvas, "shape", lambda self, shape, color, *at: shapes.append((shape, at[:3])))
    monkeypatch.setattr(Canvas, "bar", lambda self, *at: bars.append(at[:3]))
    for task, split, seed in product(TASKS, SPLITS, range(8)):
        shapes.clear(), bars.clear()
        answer = scene(SceneSpec(task, split, seed, 1, 0)).answer_vision
        x, y, r = shapes[0][1] if task == "counting" else bars[0]
        if task == "positional_reasoning":
            key = answer + shapes[0][0]
            mine = [cell for cell in on_side(answer) if place_split(key, cell) == split]
            assert cell_at(x, y, r) in (mine or on_side(answer))
            alone += bool(mine)
        else:
            drawn_larger = task in ("activity_recognition", "sport_recognition")
            size = 4.8 if task == "counting" else r / 1.15 if drawn_larger else r
            assert place_split(answer, cell_at(x, y, size)) == split, (task, split, seed)
    assert alone > 12, "of 24"


@pytest.mark.parametrize("per_task", [16, 48])
def test_every_combination_of_tiers_is_there_equally_often(per_task):
    for split in SPLITS:
        found = Counter((s.task, s.visual_tier, s.text_tier) for s in specs(split, per_task, 0))
        assert found == {key: per_task // 16 for key in product(TASKS, range(len(VISUAL_TIERS)), range(TEXT_TIERS))}
    assert len({s.seed for s in specs("test", 48, 0)} | {s.seed for s in specs("test", 48, 1)}) == 96


def test_every_answer_occurs_on_both_sides():
    samples = [scene(s) for s in specs("test", 48, 0)]
    for task, answers in ANSWERS.items():
        mine = [s for s in samples if s.task == task]
        assert {s.answer_vision for s in mine} == set(answers) == {s.answer_text for s in mine}
    assert all(s.answer_vision != s.answer_text for s in samples)
    assert len({s.id for s in samples}) == len(samples)


def blobs(image) -> int:
    """Connected areas that are not background (the picture's corner), of more than 6 pixels."""
    pixels = np.asarray(image).astype(int)
    ink = np.abs(pixels - pixels[0, 0]).sum(-1) > 60
    sizes = []
    while ink.any():
        stack, size = [tuple(np.argwhere(ink)[0])], 0
        ink[stack[0]] = False
        while stack:
            y, x = stack.pop()
            size += 1
            for ny, nx in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= ny < 48 and 0 <= nx < 48 and ink[ny, nx]:
                    ink[ny, nx] = False
                    stack.append((ny, nx))
        sizes.append(size)
    return sum(s > 6 for s in sizes)


def test_counting_pictures_hold_so_many_separate_objects():
    samples = [scene(SceneSpec("counting", split, seed, 0, 0)) for split in SPLITS for seed in range(20)]
    assert all(blobs(s.load_image()) == ANSWERS["counting"].index(s.answer_vision) + 1 for s in samples)
    assert {s.answer_vision for s in samples} == set(ANSWERS["counting"])


@pytest.mark.parametrize("tier", range(len(VISUAL_TIERS)))
def test_counted_objects_are_apart_and_clutter_is_of_other_shapes(monkeypatch, tier):
    drawn = []
    monkeypatch.setattr(
        Canvas, "shape", lambda self, shape, color, x, y, r, pattern="solid": drawn.append((shape, x, y, r))
    )
    for seed in range(60):
        drawn.clear()
        sample = scene(SceneSpec("counting", "train", seed, tier, 0))
        number = ANSWERS["counting"].index(sample.answer_vision) + 1
        shape = drawn[0][0]
        assert [s for s, *_ in drawn].count(shape) == number and sample.tags["subject"].startswith(shape)
        for (_, x, y, r), (_, x2, y2, r2) in combinations(drawn, 2):
            assert ((x - x2) ** 2 + (y - y2) ** 2) ** 0.5 > r + r2
        assert all(r * 1.1 <= v <= 48 - r * 1.1 for _, x, y, r in drawn[:number] for v in (x, y)), (
            "wholly on the picture"
        )


def test_other_pictures_show_one_target_and_clutter_never_shares_its_answer(monkeypatch):
    drawn, shape = [], Canvas.shape
    monkeypatch.setattr(Canvas, "shape", lambda self, *args: drawn.append(args) or shape(self, *args))
    for task, seed in product(("color", "object_recognition", "attribute", "positional_reasoning"), range(25)):
        drawn.clear()
        sample = scene(SceneSpec(task, "test", seed, 3, 0))
        target, clutter = drawn[0], drawn[1:]
        assert all(c[0] != target[0] and c[1] != target[1] for c in clutter)
        shown = {"color": target[1], "object_recognition": target[0], "attribute": target[-1]}
        assert sample.answer_vision == shown.get(task, sample.answer_vision)
        if task == "positional_reasoning":
            x, y = target[2] - 24, target[3] - 24
            side = ("left" if x < 0 else "right") if abs(x) > abs(y) else ("above" if y < 0 else "below")
            assert sample.answer_vision == side


def test_contexts_claim_the_text_answer_and_never_the_vision_answer():
    for spec in [*specs("train", 32, 0), *specs("dev", 16, 0), *specs("test", 32, 0)]:
        sample = scene(spec)
        claim, other = (KNOWLEDGE if spec.text_tier == 1 else {a: a for a in ANSWERS[spec.task]}), ANSWERS[spec.task]
        assert claim[sample.answer_text] in sample.context
        assert sample.answer_vision not in words(sample.context) or spec.text_tier == 1
        assert KNOWLEDGE[sample.answer_vision] not in sample.context
        said = [a for a in other if a in words(sample.context)]
        assert len(said) <= (2 if spec.text_tier >= 2 else 1), "at most a decoy beside the claim"


def test_harder_contexts_are_longer_chains():
    for task in TASKS:
        subject = "stars" if task == "counting" else "the star"
        lengths = [
            np.mean(
                [write_context(task, subject, ANSWERS[task][0], tier, "test", Random(i)).count(".") for i in range(20)]
            )
            for tier in range(TEXT_TIERS)
        ]
        assert lengths[0] == lengths[1] < lengths[2] < lengths[3]


def test_the_prompt_has_the_layout_of_the_benchmark():
    sample = scene(SceneSpec("color", "test", 1, 0, 0))
    prompt = build_prompt(sample, "order2")
    assert [s.role for s in prompt.segments] == [Role.IMAGE, Role.CONTEXT, Role.QUESTION, Role.OPTIONS]
    assert prompt.segments[1].text == f"Text context: {sample.context}"
    assert prompt.segments[3].text == f"A. {sample.answer_text}\nB. {sample.answer_vision}\n{CHOOSE}"
    assert options(sample, 0) == options(sample, 1)[::-1] == (sample.answer_vision, sample.answer_text)
    assert build_prompt(sample, "open", image=False).segments[-1].text == DIRECT
    assert [s.role for s in build_prompt(sample, "open", context=False).segments] == [
        Role.IMAGE,
        Role.QUESTION,
        Role.OPTIONS,
    ]


@pytest.mark.parametrize(
    "form, direction, answer",
    [("order1", "vision", "A"), ("order1", "text", "B"), ("order2", "vision", "B"), ("order2", "text", "A")],
)
def test_worked_examples_follow_their_direction(form, direction, answer):
    sample = scene(SceneSpec("counting", "train", 1, 0, 0))
    cls = lookup("benchmark", "scenes")
    benchmark = cls(cls.Params())
    assert benchmark.example(sample, form, direction).segments[-1].text == answer
    assert benchmark.judge(sample, form, answer) == direction
    assert benchmark.example(sample, "open", direction).segments[-1].text == (
        sample.answer_vision if direction == "vision" else sample.answer_text
    )


@pytest.mark.parametrize(
    "scoring, forms", [("both_orders", ("order1", "order2")), ("order1", ("order1",)), ("open_ended", ("open",))]
)
def test_the_benchmark_asks_in_the_forms_of_its_scoring(scoring, forms):
    cls = lookup("benchmark", "scenes")
    benchmark = cls(cls.Params(scoring=scoring, per_task={"train": 2, "dev": 1, "test": 1}))
    assert benchmark.forms == forms and benchmark.protocol == f"scenes/{scoring}"
    assert [len(benchmark.samples(split)) for split in SPLITS] == [16, 8, 8]
    assert benchmark.outcome(["text"] * len(forms), "text") == "follow"


def test_lessons_are_answered_and_the_same_for_the_same_seed():
    for draw in (lambda rng: lesson(rng, 0.5, Mix()), lambda rng: worked_example_lesson(rng, 0.5)):
        a, b = draw(Random(3)), draw(Random(3))
        assert a.digest == b.digest and a.answered
    assert len(worked_example_lesson(Random(3), 0.5).images) == 2


def test_practice_moves_pictures_and_favours_tasks_and_leaves_plain_lessons_alone():
    plain, moved = (lesson(Random(5), 0.0, Mix(), practice) for practice in (Practice(), Practice(shift=4)))
    assert plain.digest == lesson(Random(5), 0.0, Mix()).digest
    assert [s.text for s in plain.segments if s.role != Role.ANSWER] == [
        s.text for s in moved.segments if s.role != Role.ANSWER
    ]
    assert (
        plain.images
        and plain.images[0].tobytes() != moved.images[0].tobytes()
        and moved.images[0].size == plain.images[0].size
    )
    counting = [draw_spec(Random(i), emphasis={"counting": 50.0}).task == "counting" for i in range(60)]
    assert sum(counting) > 40


@pytest.mark.parametrize("shift", [0, 3])
def test_a_moved_picture_is_the_picture_elsewhere(shift):
    image = paint(SceneSpec("color", "train", 3, 0, 0))[0]
    out = moved(image, shift, Random(1))
    at = Random(1)
    dx, dy = (at.randint(-shift, shift), at.randint(-shift, shift)) if shift else (0, 0)
    box = (max(dx, 0), max(dy, 0), 48 + min(dx, 0), 48 + min(dy, 0))
    assert out.crop(box).tobytes() == image.crop((box[0] - dx, box[1] - dy, box[2] - dx, box[3] - dy)).tobytes()


def test_a_scene_drawn_larger_is_the_same_picture():
    """Reduced again it is what the small one is, but for the rounding of edges; the noise has the small one's grain."""
    for task in TASKS:
        spec = SceneSpec(task, "dev", 5, 3, 0)
        small, large = paint(spec)[0], paint(replace(spec, scale=4))[0]
        assert large.size == (192, 192)
        off = np.abs(np.asarray(large.reduce(4), float) - np.asarray(small, float)).mean()
        assert off < 6, task
        other = paint(replace(spec, seed=6))[0]
        assert np.abs(np.asarray(other, float) - np.asarray(small, float)).mean() > 2 * off, task
