"""Lessons of Scenes beyond one question: what is asked, what is answered, how often, and in which words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from eval_suite.benchmarks.scenes import Scenes, ScenesParams
from eval_suite.scenes.curriculum import Mix, Practice, draw_spec, lesson
from eval_suite.scenes.draw import COLORS, SHAPES
from eval_suite.scenes.lessons import films, instructions, letters, pressure, retraction, second_turn
from eval_suite.scenes.lessons.asking import Exam, last_named, next_answer
from eval_suite.scenes.preference import trusts_vision
from eval_suite.scenes.world import ANSWERS, TASKS, SceneSpec, scene
from factory.data.prompt import Prompt, Role
from factory.data.sample import ConflictSample

WORDINGS = {
    "letters": [letters.TOLD],
    "films": [films.WHICH],
    "second_turn": [second_turn.AGAIN],
    "pressure": [p.forms for p in pressure.PRESSURES.values()],
    "retraction": [*retraction.HINTS.values(), *retraction.ARRIVALS.values()],
}
ANSWER = f"({'|'.join(a for answers in ANSWERS.values() for a in answers)})"
WORDS = Exam(lambda prompts: [], 1).words
SAMPLES = [scene(SceneSpec(task, "train", seed, seed % 4, seed // 4)) for task in TASKS for seed in range(16)]
EASY = [scene(SceneSpec(task, "test", seed, 0, 0)) for task in TASKS for seed in range(4)]


def only(kind: str) -> Mix:
    return Mix(**{**dict.fromkeys(Mix.model_fields, 0.0), kind: 1.0})


def texts(prompt: Prompt, *roles: Role) -> list[str]:
    return [s.text for s in prompt.segments if s.role in roles]


def wordings_in(prompt: Prompt, forms: tuple[str, ...]) -> set[int]:
    """Which of ``forms`` a prompt's own words hold."""
    patterns = [re.escape(f) for f in forms]
    patterns = [re.sub(r"\\{[wa]\\}", ANSWER, p).replace(r"\{s\}", "[a-z ]+") for p in patterns]
    return {
        i
        for i, p in enumerate(patterns)
        for text in texts(prompt, Role.INSTRUCTION, Role.QUESTION)
        if re.fullmatch(p, text)
    }


@pytest.mark.parametrize("kind", WORDINGS)
def test_splits_share_no_wording_and_test_wordings_use_words_of_the_training_ones(kind):
    known = {w for forms in WORDINGS[kind] for f in forms[:-2] for w in re.findall(r"\w+", f.lower())}
    for forms in WORDINGS[kind]:
        assert len({f.lower() for f in forms}) == len(forms) >= 6
        assert not {w for w in re.findall(r"\w+", forms[-1].lower())} - known, forms[-1]


def test_no_kind_of_pressure_has_a_test_wording_that_another_trains_with():
    train = {f for p in pressure.PRESSURES.values() for f in p.forms[:-2]}
    assert not train & {p.forms[-1] for p in pressure.PRESSURES.values()}


@pytest.mark.parametrize("kind", WORDINGS)
def test_lessons_are_written_in_training_wordings_alone(kind):
    seen = Counter()
    for i in range(60):
        prompt = lesson(Random(f"{kind}/{i}"), 0.3, only({"films": "film"}.get(kind, kind)))
        for forms in WORDINGS[kind]:
            found = wordings_in(prompt, forms)
            assert not found & {len(forms) - 1, len(forms) - 2}, texts(prompt, Role.INSTRUCTION, Role.QUESTION)
            seen.update(found)
    assert seen


def test_the_mix_draws_each_kind_as_often_as_it_weighs():
    mix = only("film").model_copy(update={"film": 0.25, "pressure": 0.5, "second_turn": 0.25})
    kinds = Counter()
    for i in range(160):
        prompt = lesson(Random(i), 0.0, mix)
        turns = len(texts(prompt, Role.ANSWER))
        frames = len(prompt.images)
        again = wordings_in(prompt, second_turn.AGAIN) or sum(s.role == Role.QUESTION for s in prompt.segments) == 2
        kinds["second_turn" if again else "film" if frames > 1 and turns == 1 else "pressure"] += 1
    assert abs(kinds["film"] - 40) < 20 and abs(kinds["second_turn"] - 40) < 20 and abs(kinds["pressure"] - 80) < 25


def test_the_last_answer_that_is_named_counts():
    assert last_named("Not red, blue. But a red one", ("red", "blue")) == "red"
    assert last_named("It is reddish", ("red", "blue")) is None


def test_kinds_of_no_weight_leave_the_lessons_as_they_were():
    """The first lessons of seed 0 as the shipped tiny model had them."""
    drawn = [lesson(Random(f"0/{i}"), 0.5, Mix()).digest for i in range(3)]
    assert drawn == ["6cce9112a949fa62", "d9447be25ee54ce5", "9876b2f76de55997"]


@pytest.mark.parametrize("frames", [2, 8])
def test_a_film_shows_its_evidence_in_one_picture_alone(frames):
    for sample in EASY:
        film = films.film_of(sample, Random(sample.id), frames)
        same = [i for i, p in enumerate(film.pictures) if p.tobytes() == sample.load_image().tobytes()]
        assert len(film.pictures) == frames and same == [film.at]
    assert {films.film_of(SAMPLES[0], Random(i)).at for i in range(100)} == set(range(8))


def test_fillers_hold_neither_the_shape_nor_the_colour_that_is_asked_for(monkeypatch):
    held = []
    monkeypatch.setattr(films.Canvas, "shape", lambda self, shape, color, *_: held.append((shape, color)))
    for subject, at, left in (("the red object", 1, set(COLORS) - {"red"}), ("crosses", 0, set(SHAPES) - {"cross"})):
        held.clear()
        for i in range(60):
            films.filler(Random(i), subject)
        assert {drawn[at] for drawn in held} == left


def test_a_film_is_answered_with_what_its_picture_shows_or_its_number():
    which = 0
    for i, sample in enumerate(SAMPLES * 2):
        prompt = films.lesson(Random(i), sample, "open")
        answer = prompt.segments[-1].text
        at = [p.tobytes() for p in prompt.images].index(sample.load_image().tobytes())
        if wordings_in(prompt, films.WHICH):
            which += 1
            assert answer == films.ORDINALS[at]
        else:
            assert answer == sample.answer_vision and len(prompt.images) in films.LENGTHS
    assert 0.2 < which / (2 * len(SAMPLES)) < 0.4


def test_an_answer_that_is_told_is_answered_with_its_letter():
    bare = 0
    for i, sample in enumerate(SAMPLES):
        prompt = letters.lesson(Random(i), sample)
        bare += not texts(prompt, Role.QUESTION)
        (told,), (options,), (letter,) = (texts(prompt, r) for r in (Role.INSTRUCTION, Role.OPTIONS, Role.ANSWER))
        assert last_named(told, ANSWERS[sample.task]) == re.search(rf"^{letter}\. (.+)$", options, re.MULTILINE)[1]
    assert 0.6 < bare / len(SAMPLES) < 0.9


def test_the_second_turn_is_answered_from_its_own_evidence():
    for i, sample in enumerate(SAMPLES):
        following = SAMPLES[-1 - i]
        prompt = second_turn.lesson(Random(i), sample, "open", following, "open")
        *_, answer = texts(prompt, Role.ANSWER)
        if wordings_in(prompt, second_turn.AGAIN):
            assert answer == (sample.answer_vision if prompt.images else sample.answer_text)
        else:
            last = max(j for j, s in enumerate(prompt.segments[:-1]) if s.role == Role.ANSWER)
            seen = any(s.image is not None for s in prompt.segments[last:])
            assert answer == (following.answer_vision if seen else following.answer_text)


@pytest.mark.parametrize("kind", pressure.PRESSURES)
def test_pressure_pushes_a_right_answer_away_and_a_wrong_one_toward_the_right(kind):
    for sample in EASY:
        right, wrong = sample.answer_vision, sample.answer_text
        pressed = pressure.press(kind, sample, "open", "image", "test", WORDS(sample), right)
        assert pressed.right == right and pressed.given_up != right
        suggested = pressure.PRESSURES[kind].suggests
        assert pressed.given_up == (wrong if suggested else next_answer(sample.task, right))
        told = " ".join(texts(pressed.prompt, Role.INSTRUCTION))
        assert last_named(told, (right, wrong)) == (wrong if suggested else right if kind == "rejects" else None)
        before = pressure.PRESSURES[kind].before
        assert texts(pressed.prompt, Role.ANSWER) == ([] if before else [right])
        assert [s.role for s in pressed.prompt.segments][-1] in (Role.OPTIONS, Role.INSTRUCTION)
        if not before:
            mended = pressure.press(kind, sample, "open", "image", "test", WORDS(sample), wrong)
            assert mended.given_up == right and mended.first == wrong


def test_pressure_is_given_in_to_in_some_cases_of_each_kind_and_not_in_all():
    for kind in pressure.PRESSURES:
        given = [pressure.gives_in(kind, s, "image", False, Random(f"{kind}/{i}")) for i, s in enumerate(SAMPLES)]
        assert 0.2 < np.mean(given) < 0.8, kind
        clear = [pressure.gives_in(kind, s, "image", False, Random(f"{kind}/{i}")) for i, s in enumerate(EASY)]
        assert 0.2 <= np.mean(clear) <= 0.8, kind


def test_a_pressed_lesson_ends_with_the_answer_kept_or_given_up():
    ends = Counter()
    for i, sample in enumerate(SAMPLES):
        prompt = pressure.lesson(Random(i), sample, "open")
        *before, last = texts(prompt, Role.ANSWER)
        assert last in ANSWERS[sample.task]
        ends[bool(before), bool(before) and before[0] == last] += 1
    assert min(ends.values()) > 8, ends


def test_a_letter_under_pressure_is_the_letter_of_the_answer():
    sample = EASY[0]
    pressed = pressure.press("strong", sample, "order2", "image", "test", Random(1), sample.answer_vision)
    assert texts(pressed.prompt, Role.ANSWER) == ["B"]
    assert pressure.written(sample, "order2", sample.answer_text) == "A"


@pytest.mark.parametrize("kind, toward", retraction.KINDS)
def test_a_dialogue_brings_or_hints_at_the_other_modality_and_reads_its_answers(kind, toward):
    for sample in EASY:
        prompt = retraction.dialogue(kind, toward, sample, "open", "test", WORDS(sample))
        (first,) = texts(prompt, Role.ANSWER)
        assert first == (sample.answer_text if toward == "vision" else sample.answer_vision)
        at = [s.role for s in prompt.segments].index(Role.ANSWER)
        early, late = prompt.segments[:at], prompt.segments[at:]
        brings = {"vision": Role.IMAGE, "text": Role.CONTEXT}[toward]
        assert (brings in [s.role for s in late]) == (kind == "evidence")
        assert (brings in [s.role for s in early]) == (kind == "hint")
        for taken_back in (True, False):
            text = retraction.verdict(kind, toward, sample, "open", taken_back)
            assert retraction.read(text, toward, sample) == ("back" if taken_back else "stays"), text
            assert retraction.regrets(text) == taken_back
    assert retraction.read("", toward, EASY[0]) == retraction.read("The image", toward, EASY[0]) == "unread"


def test_answers_are_taken_back_where_the_other_modality_is_believed():
    by_kind = {key: [] for key in retraction.KINDS}
    for kind, toward in retraction.KINDS:
        for i, sample in enumerate(SAMPLES):
            back = retraction.takes_back(kind, toward, sample, Random(i))
            by_kind[kind, toward].append(back)
            if abs(retraction.belief(toward, sample)) > 2.2:
                assert back == (retraction.belief(toward, sample) > 0)
        assert 0.2 < np.mean(by_kind[kind, toward]) < 0.8


def test_a_share_of_the_instructions_is_obeyed_and_the_rest_follows_the_leaning():
    def obeys(obeyed: float) -> float:
        """The share of lessons whose answer is the image's, of a scene that the lesson's first draws decide."""
        hits = []
        for i in range(120):
            sample, prompt = (
                scene(draw_spec(Random(i))),
                lesson(Random(i), 0.0, only("vision"), Practice(obeyed=obeyed)),
            )
            assert sample.context in texts(prompt, Role.CONTEXT)[0]
            hits.append(prompt.segments[-1].text == sample.answer_vision)
        return float(np.mean(hits))

    own = [trusts_vision(scene(draw_spec(Random(i))), Random(-i)) for i in range(120)]
    assert obeys(1.0) == 1 and obeys(0.3) == pytest.approx(0.3 + 0.7 * np.mean(own), abs=0.15)


def seeing(samples: list[ConflictSample]) -> Callable[[list[Prompt]], list[str]]:
    """One who answers from the picture whatever is said, openly or with its letter."""
    shown = {s.load_image().tobytes(): s.answer_vision for s in samples}

    def answer(prompt: Prompt) -> str:
        word = next(shown[p.tobytes()] for p in prompt.images if p.tobytes() in shown)
        last = texts(prompt, Role.OPTIONS)[-1]
        return re.search(rf"([AB])\. {word}$", last, re.MULTILINE)[1] if "A. " in last else word

    return lambda prompts: [answer(p) if p.images else "?" for p in prompts]


def test_one_who_answers_from_the_picture_passes_and_gives_in_to_nothing():
    answer = seeing([s for task in TASKS for s in Exam(str, 1, 3).clean(task)])
    assert films.examine(Exam(answer, 1, 3))["film"]["all"] == 1
    assert second_turn.examine(Exam(answer, 1, 3))["second_turn"]["all"] == 1
    found = letters.examine(Exam(answer, 1, 3))
    assert found["image_letters"]["all"] == 1 and found["text_letters"]["all"] == 0
    found = pressure.examine(Exam(answer, 1, 3))
    assert [found[f"pressure_{name}"]["all"] for name in ("mss", "crs", "unread")] == [0, 1, 0]
    assert set(found["pressure_mss"]) == {*pressure.PRESSURES, "all"}


def test_one_who_always_says_a_gets_no_letter_right_in_both_orders():
    assert letters.examine(Exam(lambda prompts: ["A"] * len(prompts), 1, 3))["image_letters"]["all"] == 0


def test_one_who_says_nothing_is_unread_and_takes_nothing_back():
    found = retraction.examine(Exam(lambda prompts: [""] * len(prompts), 1, 3))
    assert found["retraction"]["all"] == 0 and found["retraction_unread"]["all"] == 1


def test_the_instruction_of_mc2_stands_before_the_question():
    roles = [s.role for s in instructions.as_mc2(EASY[0], "text").segments]
    assert roles == [Role.IMAGE, Role.CONTEXT, Role.INSTRUCTION, Role.QUESTION, Role.OPTIONS]


def test_a_model_is_examined_on_what_it_was_taught():
    taught = Scenes(ScenesParams(options=0.0, lessons=only("pressure")))
    plain = Scenes(ScenesParams(options=0.0))
    a, b = (benchmark.examine(lambda prompts: ["red"] * len(prompts), 1) for benchmark in (taught, plain))
    assert set(a) - set(b) == {"pressure_mss", "pressure_crs", "pressure_unread"} and set(b) < set(a)
