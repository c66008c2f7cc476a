"""Option letters: the letter of an answer that is told, and whether clean evidence is answered with the right letter in
both orders.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

from eval_suite.conflict import FORMS, answer_of, question_segments
from eval_suite.scenes.language import phrasing
from eval_suite.scenes.lessons.asking import Exam, alone, answer_in, mean, said
from eval_suite.scenes.world import ANSWERS
from eval_suite.scorers.conflict import agree, judge
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample

TOLD = (
    "The answer is {w}.",
    "It is {w}.",
    "{w} is the answer.",
    "The right answer is {w}.",
    "The answer that is right is {w}.",
    "The right answer, it is {w}.",
)


BARE = 0.75  # share of lessons without a question: letters alone are learnt in a few hundred steps, with it in none


def lesson(rng: Random, sample: ConflictSample) -> Prompt:
    """Options, one of which is named right before them, and its letter: nothing has to be seen or read for it. Without
    a question the options are any two answers of the sample's task.
    """
    form, direction = rng.choice(FORMS["both_orders"]), rng.choice(("vision", "text"))
    bare = rng.random() < BARE
    if bare:
        vision, text = rng.sample(ANSWERS[sample.task], 2)
        sample = replace(sample, answer_vision=vision, answer_text=text)
    told = Segment(Role.INSTRUCTION, phrasing(TOLD, "train", rng).format(w=answer_in(sample, direction)))
    question, options = question_segments(sample, form)
    answer = said(answer_of(sample, form, direction))
    return Prompt((*(() if bare else (question,)), told, options, answer), task=sample.task)


def examine(exam: Exam) -> dict[str, dict[str, float]]:
    """Shares of clean samples, either modality alone, whose letters are right in both orders."""

    def right(samples: list[ConflictSample], evidence: str) -> float:
        orders = []
        for form in FORMS["both_orders"]:
            texts = exam.answer([alone(s, form, evidence)[0] for s in samples])
            orders.append([judge(form, t, s.answer_vision, s.answer_text) for s, t in zip(samples, texts, strict=True)])
        direction = "vision" if evidence == "image" else "text"
        return mean(agree(verdicts) == direction for verdicts in zip(*orders, strict=True))

    return {f"{evidence}_letters": exam.by_task(partial(right, evidence=evidence)) for evidence in ("image", "text")}
