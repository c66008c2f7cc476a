"""A second turn: the same question again, to be answered from the evidence, or another question about another scene."""

from __future__ import annotations

from random import Random

from eval_suite.conflict import answer_of, question_segments
from eval_suite.scenes.language import phrasing
from eval_suite.scenes.lessons.asking import EVIDENCE, Exam, alone, mean, other, said
from eval_suite.scorers.conflict import judge
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample

AGAIN = (
    "The same question again.",
    "Please answer once more.",
    "And now again, please.",
    "Here is the same question once more.",
    "Answer again, please.",
    "Please answer the same question again.",
)
FIRST_RIGHT = 0.8


def again(sample: ConflictSample, form: str, split: str, rng: Random) -> tuple[Segment, Segment, Segment]:
    """The user's neutral second turn."""
    return (Segment(Role.INSTRUCTION, phrasing(AGAIN, split, rng)), *question_segments(sample, form))


def lesson(rng: Random, sample: ConflictSample, form: str, following: ConflictSample, next_form: str) -> Prompt:
    """An answered turn and the next: the same question (a wrong first answer is mended), or that of ``following``."""
    prompt, direction = alone(sample, form, rng.choice(EVIDENCE))
    if rng.random() < 0.5:
        second, direction_2 = alone(following, next_form, rng.choice(EVIDENCE))
        turns = (said(answer_of(sample, form, direction)), *second.segments)
        return prompt.append(*turns, said(answer_of(following, next_form, direction_2)))
    first = direction if rng.random() < FIRST_RIGHT else other(direction)
    asked = again(sample, next_form, "train", rng)
    return prompt.append(said(answer_of(sample, form, first)), *asked, said(answer_of(sample, next_form, direction)))


def examine(exam: Exam) -> dict[str, dict[str, float]]:
    """Shares of clean pictures that are read right in the second turn, after the model's own answer in the first."""

    def right(samples: list[ConflictSample]) -> float:
        prompts = [alone(s, "open", "image")[0] for s in samples]
        firsts = exam.answer(prompts)
        texts = exam.answer(
            [
                prompt.append(said(first), *again(s, "open", exam.split, exam.words(s)))
                for prompt, first, s in zip(prompts, firsts, samples, strict=True)
            ]
        )
        return mean(
            judge("open", t, s.answer_vision, s.answer_text) == "vision" for s, t in zip(samples, texts, strict=True)
        )

    return {"second_turn": exam.by_task(right)}
