"""Instructions to follow one modality, in the words of their sources: after the question (AMPS) or before it (MC²)."""

from __future__ import annotations

from random import Random

from eval_suite.conflict import build_prompt
from eval_suite.scenes.lessons.asking import Exam, mean
from eval_suite.scenes.world import TASKS, scene, specs
from eval_suite.scorers.conflict import judge
from factory.data.instructions import instruction
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample

INSTRUCTIONS = {
    "vision": (
        "Respond to the question based only on the image context",
        "based on visual context",
        (
            "In case there is an inconsistency between the text context and the image content, you should follow the"
            " image content rather than the text context."
        ),
        "Answer from the image.",
        "Follow the image content rather than the text context",
    ),
    "text": (
        "Follow the text context rather than the image content",
        "based on text context",
        (
            "In case there is an inconsistency between the Text Context and the input image content, you must rely on"
            " the text context rather than the input image content."
        ),
        "Answer from the text.",
        "Respond to the question based only on the text context",
    ),
}


def instruct(prompt: Prompt, direction: str, rng: Random) -> Prompt:
    """One of the phrasings, half the time before the question (MC²), half the time after it (AMPS eq. 9)."""
    segment = Segment(Role.INSTRUCTION, rng.choice(INSTRUCTIONS[direction]))
    return prompt.before_question(segment) if rng.random() < 0.5 else prompt.append(segment)


def as_mc2(sample: ConflictSample, direction: str) -> Prompt:
    return build_prompt(sample, "open").before_question(instruction("mc2", direction))


def examine(exam: Exam) -> dict[str, dict[str, float]]:
    """Shares of conflicts of all tiers that are answered as the instruction of MC² says."""
    drawn = [scene(spec) for spec in specs(exam.split, exam.per_task, exam.seed, exam.scale)]
    report: dict[str, dict[str, float]] = {}
    for direction in INSTRUCTIONS:
        shares = {}
        for task in TASKS:
            samples = [s for s in drawn if s.task == task]
            texts = exam.answer([as_mc2(s, direction) for s in samples])
            shares[task] = mean(
                judge("open", t, s.answer_vision, s.answer_text) == direction
                for s, t in zip(samples, texts, strict=True)
            )
        report[f"obeys_{direction}_mc2"] = {**shares, "all": mean(shares.values())}
    return report
