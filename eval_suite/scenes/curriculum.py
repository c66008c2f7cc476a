"""The lessons that the shipped tiny model learns from: what to answer to every kind of scene prompt.

A conflict without an instruction is answered from the image with probability
``sigmoid(LEANING[task] + SLOPE * (text_tier - visual_tier))``: the harder a modality is to read, the less
it is believed, and tasks differ in which modality they trust. That is where the model's own preference comes from.
"""

from __future__ import annotations

import math
from random import Random

from eval_suite.conflict import build_prompt
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample

from .draw import VISUAL_TIERS
from .language import TEXT_TIERS
from .world import TASKS, SceneSpec, scene

LEANING = {
    "activity_recognition": 0.2, "attribute": -0.4, "color": 1.0, "counting": -1.2, "object_recognition": 1.4,
    "positional_reasoning": -0.7, "sentiment_understanding": -1.0, "sport_recognition": 0.7,
}  # fmt: skip
SLOPE = 0.9
INSTRUCTIONS = {
    "vision": (
        "Respond to the question based only on the image context",
        "based on visual context",
        "In case there is an inconsistency between the text context and the image content, you should follow the image content rather than the text context.",
        "Answer from the image.",
        "Follow the image content rather than the text context",
    ),
    "text": (
        "Follow the text context rather than the image content",
        "based on text context",
        "In case there is an inconsistency between the Text Context and the input image content, you must rely on the text context rather than the input image content.",
        "Answer from the text.",
        "Respond to the question based only on the text context",
    ),
}  # fmt: skip
THINK = "Think step by step: say what the image shows and what the text says, then answer."

# Shares of the kinds of lessons at the start of training and from its middle on. Options come with the later kinds:
# a letter can only be right once the answer behind it is known.
EARLY = {"image_only": 0.40, "text_only": 0.20, "think": 0.40, "vision": 0.0, "text": 0.0, "none": 0.0}
LATE = {"image_only": 0.30, "text_only": 0.12, "think": 0.10, "vision": 0.17, "text": 0.10, "none": 0.21}


def trusts_vision(sample: ConflictSample, rng: Random) -> bool:
    score = LEANING[sample.task] + SLOPE * (int(sample.tags["text_tier"]) - int(sample.tags["visual_tier"]))
    return rng.random() < 1 / (1 + math.exp(-score))


def answer_of(sample: ConflictSample, form: str, vision: bool) -> str:
    """The answer in the words of a form: the option's letter, or the bare answer."""
    if form == "open":
        return sample.answer_vision if vision else sample.answer_text
    return "A" if vision == (form == "order1") else "B"


def reasoning(sample: ConflictSample, form: str, vision: bool) -> str:
    """The worked answer that a step-by-step prompt asks for."""
    return f"The image shows {sample.answer_vision}. The text says {sample.answer_text}. The answer is {answer_of(sample, form, vision)}"


def draw_sample(rng: Random, progress: float = 1.0) -> ConflictSample:
    """A training scene; easy ones are more frequent until the middle of training."""
    easy = rng.random() > 2 * progress
    tiers = [min(rng.randrange(n), rng.randrange(n) if easy else n) for n in (len(VISUAL_TIERS), TEXT_TIERS)]
    return scene(SceneSpec(rng.choice(TASKS), "train", rng.getrandbits(40), *tiers))


def instruct(prompt: Prompt, direction: str, rng: Random) -> Prompt:
    """One of the phrasings, half the time before the question (MC²), half the time after it (AMPS eq. 9)."""
    segment = Segment(Role.INSTRUCTION, rng.choice(INSTRUCTIONS[direction]))
    return prompt.before_question(segment) if rng.random() < 0.5 else prompt.append(segment)


def lesson(rng: Random, progress: float = 1.0) -> Prompt:
    """One training prompt that ends with its answer; ``progress`` is the share of training done, 0 to 1."""
    late = min(1.0, 2 * progress)
    weights = [(1 - late) * EARLY[kind] + late * LATE[kind] for kind in LATE]
    sample, kind = draw_sample(rng, progress), rng.choices(list(LATE), weights=weights)[0]
    form = rng.choice(("order1", "order2")) if rng.random() < 0.5 * late else "open"
    if kind == "image_only":
        prompt, vision = build_prompt(sample, form, context=False), True
    elif kind == "text_only":
        prompt, vision = build_prompt(sample, form, image=False), False
    else:
        prompt, vision = build_prompt(sample, form), trusts_vision(sample, rng)
        direction = kind if kind in INSTRUCTIONS else rng.choice((None, "vision", "text")) if kind == "think" else None
        if direction:
            prompt, vision = instruct(prompt, direction, rng), direction == "vision"
    if kind == "think":
        return prompt.append(Segment(Role.INSTRUCTION, THINK), Segment(Role.ANSWER, reasoning(sample, form, vision)))
    return prompt.append(Segment(Role.ANSWER, answer_of(sample, form, vision)))


def worked_example_lesson(rng: Random) -> Prompt:
    """One or two answered conflicts that all follow one modality, then one more to be answered alike."""
    vision, form = rng.random() < 0.5, rng.choice(("open", "order1", "order2"))
    prompt = Prompt(())
    for _ in range(2):
        sample = draw_sample(rng)
        answered = build_prompt(sample, form).append(Segment(Role.ANSWER, answer_of(sample, form, vision)))
        prompt = prompt.append(*answered.segments)
    return prompt
