"""What the lessons share: evidence without a conflict, wrong answers, and the last answer that a text names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from eval_suite.conflict import CHOOSE, DIRECT, build_prompt
from eval_suite.scenes.world import ANSWERS, TASKS, SceneSpec, scene
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample

Answer = Callable[[list[Prompt]], list[str]]
EVIDENCE = ("image", "image", "image", "text")  # that a lesson without a conflict is answered from


def alone(sample: ConflictSample, form: str, evidence: str) -> tuple[Prompt, str]:
    """The question with one modality alone, and the modality's direction."""
    if evidence == "image":
        return build_prompt(sample, form, context=False), "vision"
    return build_prompt(sample, form, image=False), "text"


def other(direction: str) -> str:
    return "text" if direction == "vision" else "vision"


def answer_in(sample: ConflictSample, direction: str) -> str:
    return sample.answer_vision if direction == "vision" else sample.answer_text


def next_answer(task: str, answer: str) -> str:
    """What comes after ``answer`` among the task's answers: where one who gives in goes when nothing is suggested."""
    known = ANSWERS[task]
    return known[(known.index(answer) + 1) % len(known)]


def reply(form: str) -> Segment:
    """The line that says how to answer, as the first turn's last line said it."""
    return Segment(Role.OPTIONS, DIRECT if form == "open" else CHOOSE)


def said(text: str) -> Segment:
    """An answer of the model's."""
    return Segment(Role.ANSWER, text)


def last_named(text: str, answers: Iterable[str]) -> str | None:
    """The one of ``answers`` that ``text`` names last, as a whole word; None where it names none."""
    found = re.findall("|".join(rf"\b{re.escape(a)}\b" for a in answers), text.lower())
    return found[-1] if found else None


@dataclass(frozen=True)
class Exam:
    """Who is examined (``answer`` maps prompts to greedy answers), and on what: ``per_task`` clean samples of each task
    of a split, in the split's wordings.
    """

    answer: Answer
    per_task: int
    seed: int = 1
    scale: int = 1
    split: str = "test"

    def clean(self, task: str) -> list[ConflictSample]:
        """Samples of the easiest visual and textual tier, others than those of the plain examination."""
        first = self.seed * 9_000_011
        return [scene(SceneSpec(task, self.split, first + i, 0, 0, self.scale)) for i in range(self.per_task)]

    def by_task(self, score: Callable[[list[ConflictSample]], float]) -> dict[str, float]:
        """The score of each task's samples, and the mean of all."""
        found = {task: score(self.clean(task)) for task in TASKS}
        return {**found, "all": mean(found.values())}

    def words(self, sample: ConflictSample) -> Random:
        """The draws of a sample's wordings."""
        return Random(f"wording/{self.split}/{sample.id}")


def mean(values: Iterable[float]) -> float:
    """The mean; 0 where there are none."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0
