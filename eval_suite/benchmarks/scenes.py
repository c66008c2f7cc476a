"""Scenes: drawn image-text conflicts of the eight MC² tasks, graded in difficulty, made on the fly from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from eval_suite.conflict import ConflictBenchmark, Scoring
from eval_suite.conflict_questions import ConflictQuestions
from eval_suite.scenes.color_set import color_samples
from eval_suite.scenes.controls import ControlParams, controlled
from eval_suite.scenes.curriculum import (
    Mix,
    Practice,
    examine_lessons,
    lesson,
    picture,
    text_lesson,
    worked_example_lesson,
)
from eval_suite.scenes.exam import FORMS, examine
from eval_suite.scenes.language import describe
from eval_suite.scenes.lessons.asking import Exam
from eval_suite.scenes.sheet import save_sheet
from eval_suite.scenes.world import ANSWERS, SUBJECTS, TASKS, paint, scene, spec_of, specs
from factory.benchmark import Questions
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.registry import Params, register

EXAMINED = 64
MOST = 100_000  # of a split, which are drawn before anything is told of them


class PerTask(Params):
    """Samples of each task in each split.

    ``train``, ``dev`` and ``test`` are the splits.
    """

    train: PositiveInt = Field(48, le=MOST)
    dev: PositiveInt = Field(32, le=MOST)
    test: PositiveInt = Field(48, le=MOST)


class ColorSet(Params):
    """Conflicts of each split of the controllable colour set (56 are one of each pair of tiers), and how many of the
    test split's are asked again as its irrelevant-text and its irrelevant-image control. Controls are no conflicts:
    leave them at 0 where steering methods are compared.

    ``train``, ``dev`` and ``test``: samples of each split; ``controls`` of the test split.
    """

    train: PositiveInt = Field(56, le=MOST)
    dev: PositiveInt = Field(56, le=MOST)
    test: PositiveInt = Field(224, le=MOST)
    controls: NonNegativeInt = 0


class ScenesParams(ControlParams):
    """``scoring`` as in MC² (SPEC.md 3.3); ``colors``: the colour set of arXiv 2511.02243 in place of the eight tasks;
    ``few_shot_every``: one training batch in so many shows worked examples; ``options``: share of training prompts that
    ask for a letter; ``lessons`` weighs their kinds, ``practice`` draws their scenes. ``scale`` draws pictures of
    ``scale`` x 48 pixels a side.

    ``per_task``: samples of each task; ``seed`` draws the scenes.
    """

    scoring: Scoring = "both_orders"
    per_task: PerTask = PerTask()
    colors: ColorSet | None = None
    seed: int = 0
    few_shot_every: PositiveInt = 16
    options: float = Field(0.5, ge=0, le=1)
    lessons: Mix = Mix()
    practice: Practice = Practice()
    scale: PositiveInt = 1


@register("benchmark", "scenes")
class Scenes(ConflictBenchmark):
    """Drawn scenes with contradicting contexts; train, dev and test share no phrasing and (positional reasoning apart)
    no layout.
    """

    Params = ScenesParams
    tasks = TASKS
    answer_tokens = 32  # of the longest answer in the examination

    def __init__(self, params: ScenesParams) -> None:
        self.params = params
        self.scoring = params.scoring

    def samples(self, split: str) -> Sequence[ConflictSample]:
        if colors := self.params.colors:
            drawn = color_samples(
                split, getattr(colors, split), colors.controls if split == "test" else 0, self.params.seed
            )
            return controlled(drawn, self.params.control, split)
        number = getattr(self.params.per_task, split)
        drawn = [scene(spec) for spec in specs(split, number, self.params.seed, self.params.scale)]
        return controlled(drawn, self.params.control, split)

    @property
    def protocol(self) -> str:
        return super().protocol + (f"/{self.params.control}" if self.params.control != "none" else "")

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        """What the colour set has of its own (``colors.controls``) is asked apart from these."""
        own = {} if self.params.colors else {"irrelevant text": {"control": "irrelevant"}}
        return {"matching text": {"control": "matching"}, **own, "blank picture": {"control": "blank"}}

    def as_questions(self) -> Questions:
        return ConflictQuestions(self, "text" if self.params.control == "blank" else "vision")

    def picture_with(self, sample: ConflictSample, answer: str) -> Image.Image | None:
        """The scene drawn again with ``answer`` on it, by the same draws; None in the colour set."""
        if self.params.colors or answer not in ANSWERS.get(sample.task, ()):
            return None
        return paint(spec_of(sample, self.params.scale), answer)[0]

    def references(self, sample: ConflictSample) -> Sequence[str]:
        """What the picture shows, in every phrasing of the direct contexts."""
        return describe(sample.task, str(sample.tags["subject"]), sample.answer_vision) if sample.task in TASKS else ()

    def lesson(self, index: int, batch: int, total: int) -> Prompt:
        """Training prompt ``index`` of ``total``; every so many batches show worked examples."""
        rng = Random(f"{self.params.seed}/{index}")
        if (index // batch) % self.params.few_shot_every == self.params.few_shot_every - 1:
            return worked_example_lesson(rng, self.params.options, self.params.scale)
        return lesson(rng, self.params.options, self.params.lessons, self.params.practice, self.params.scale)

    def text_lesson(self, index: int, batch: int, total: int) -> Prompt:
        """Training prompt ``index`` of ``total`` for the language model alone."""
        return text_lesson(Random(f"text/{self.params.seed}/{index}"), index / total)

    def picture(self, index: int, total: int) -> tuple[Image.Image, tuple[str, ...], str]:
        """Picture ``index`` of ``total`` for the vision tower alone, with the words of its question and the answer."""
        return picture(Random(f"picture/{self.params.seed}/{index}"), index / total, self.params.scale)

    @property
    def question_words(self) -> list[str]:
        return [*TASKS, *SUBJECTS]

    @property
    def answers(self) -> list[tuple[str, ...]]:
        """All answers, one tuple per task."""
        return list(ANSWERS.values())

    def corpus(self, n: int = 3000) -> list[str]:
        """Texts for a tokenizer."""
        return ["\n".join(s.text for s in lesson(Random(i), 0.5, Mix()).segments) for i in range(n)]

    def examine(self, answer: Callable[[list[Prompt]], list[str]], per_task: int | None = None) -> dict[str, Any]:
        """What a trained model can read, obeys and prefers (shares in [0, 1]): 64 samples a task, asked openly and as a
        choice; with ``per_task`` so many, asked only as the lessons are. A quarter as many for each further kind of
        lesson that it has had."""
        p, n = self.params, per_task or EXAMINED
        asked = FORMS if p.options or per_task is None else ("open",)
        plain = examine(answer, n, scale=p.scale, asked=asked)
        return plain | examine_lessons(Exam(answer, max(1, n // 4), scale=p.scale), p.options, p.lessons, p.practice)

    def pictures(self, folder: Path) -> list[tuple[str, Path]]:
        return [("Scenes, test split", save_sheet(folder))]
