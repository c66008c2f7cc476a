"""Taking back: an answer from one modality, then a hint at the other or the other itself, and an answer that is taken
back or is not.

Either way the answer first says what the other modality shows, so that whether it will be taken back is decided before
its words tell: "The image shows red. I apologize, the answer is red" or "The image shows red. I stay with blue". Some
say sorry and stay. It is taken back with probability ``sigmoid(SHARPNESS * (score + PULL[kind]))``; ``score`` is how
far the other modality is believed, by the task's leaning first and a little by how hard either is to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from eval_suite.conflict import answer_of, build_prompt
from eval_suite.scenes.language import phrasing
from eval_suite.scenes.lessons.asking import Exam, alone, answer_in, last_named, mean, other, said
from eval_suite.scenes.preference import LEANING, happens
from eval_suite.scenes.world import TASKS
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample

SHARPNESS = 2.0
STANCE = 1.5  # how much more than unasked the tasks differ
DOUBT = 0.3
PULL = {"hint": -0.3, "evidence": 0.3}
HINTS: Mapping[str, tuple[str, ...]] = {
    "vision": (
        "Look at the image again and say what it shows.",
        "Please look at the image, and say what it shows.",
        "What does the image show? Look again.",
        "Say what the image shows, please.",
        "Look at the image again: what does it show?",
        "Please look again and say what the image shows.",
    ),
    "text": (
        "Read the text again and say what it says.",
        "Please read the text, and say what it says.",
        "What does the text say? Read again.",
        "Say what the text says, please.",
        "Read the text again: what does it say?",
        "Please read again and say what the text says.",
    ),
}
ARRIVALS: Mapping[str, tuple[str, ...]] = {
    "vision": (
        "Here is the image. Say what it shows.",
        "Now you see the image. What does it show?",
        "This is the image: say what it shows.",
        "Now here is the image, say what it shows.",
        "Now you see the image: say what it shows.",
        "This is the image. What does it show?",
    ),
    "text": (
        "Here is the text. Say what it says.",
        "Now you have the text. What does it say?",
        "This is the text: say what it says.",
        "Now here is the text, say what it says.",
        "Now you have the text: say what it says.",
        "This is the text. What does it say?",
    ),
}
REGRETS = {
    ("hint", "vision"): "Sorry, the answer is",
    ("hint", "text"): "I was wrong, the answer is",
    ("evidence", "vision"): "I apologize, the answer is",
    ("evidence", "text"): "You are right, the answer is",
}
STAYS = ("I stay with", "Sorry, I stay with")
KINDS = tuple(REGRETS)


def dialogue(kind: str, toward: str, sample: ConflictSample, form: str, split: str, rng: Random) -> Prompt:
    """The dialogue up to the answer that may take the first one back: the first came from the modality other than
    ``toward``, which the user now hints at (kind ``hint``: both were there) or brings (``evidence``).
    """
    first = said(answer_of(sample, form, other(toward)))
    if kind == "hint":
        words = Segment(Role.INSTRUCTION, phrasing(HINTS[toward], split, rng))
        return build_prompt(sample, form).append(first, words)
    words = Segment(Role.INSTRUCTION, phrasing(ARRIVALS[toward], split, rng))
    shown = build_prompt(sample, form).without(Role.QUESTION, Role.OPTIONS).segments
    brought = [s for s in shown if (s.role == Role.IMAGE) == (toward == "vision")]
    seen_first, _ = alone(sample, form, "text" if toward == "vision" else "image")
    return seen_first.append(first, *brought, words)


def verdict(kind: str, toward: str, sample: ConflictSample, form: str, taken_back: bool) -> str:
    """The answer's text."""
    shows = "The image shows" if toward == "vision" else "The text says"
    held = answer_of(sample, form, toward if taken_back else other(toward))
    stays = STAYS[TASKS.index(sample.task) % len(STAYS)]
    return f"{shows} {answer_in(sample, toward)}. {REGRETS[kind, toward] if taken_back else stays} {held}"


def belief(toward: str, sample: ConflictSample) -> float:
    """How far ``toward`` is believed against an answer that was given, in nats."""
    tiers = int(sample.tags["text_tier"]) - int(sample.tags["visual_tier"])
    return (STANCE * LEANING[sample.task] + DOUBT * tiers) * (1 if toward == "vision" else -1)


def takes_back(kind: str, toward: str, sample: ConflictSample, rng: Random) -> bool:
    return happens(SHARPNESS * (belief(toward, sample) + PULL[kind]), rng)


def lesson(rng: Random, sample: ConflictSample, form: str) -> Prompt:
    kind, toward = rng.choice(KINDS)
    taken_back = takes_back(kind, toward, sample, rng)
    return dialogue(kind, toward, sample, form, "train", rng).append(
        said(verdict(kind, toward, sample, form, taken_back))
    )


def read(text: str, toward: str, sample: ConflictSample) -> str:
    """What an answer did: ``back`` (the first answer was taken back), ``stays`` or ``unread``."""
    *_, end = text.lower().replace("!", ".").rstrip(" .").rpartition(".")
    named = last_named(end, (sample.answer_vision, sample.answer_text))
    return "unread" if named is None else "back" if named == answer_in(sample, toward) else "stays"


def regrets(text: str) -> bool:
    """Whether an answer has the words of one that is taken back."""
    return any(words.lower() in text.lower() for words in REGRETS.values())


def examine(exam: Exam) -> dict[str, dict[str, float]]:
    """By kind and direction, on clean conflicts: shares taken back, unread, whose words fit the answer, and that say
    rightly what the other modality shows.
    """
    samples = [s for task in TASKS for s in exam.clean(task)]
    names = ("retraction", "retraction_unread", "retraction_words_fit", "retraction_reads")
    report: dict[str, dict[str, float]] = {name: {} for name in names}
    for kind, toward in KINDS:
        texts = exam.answer([dialogue(kind, toward, s, "open", exam.split, exam.words(s)) for s in samples])
        acts = [read(text, toward, s) for s, text in zip(samples, texts, strict=True)]
        shares = (
            mean(act == "back" for act in acts),
            mean(act == "unread" for act in acts),
            mean(act != "unread" and (act == "back") == regrets(t) for act, t in zip(acts, texts, strict=True)),
            mean(
                last_named(t.partition(".")[0], (s.answer_vision, s.answer_text)) == answer_in(s, toward)
                for s, t in zip(samples, texts, strict=True)
            ),
        )
        for name, share in zip(names, shares, strict=True):
            report[name][f"{kind}_{toward}"] = share
    for found in report.values():
        found["all"] = mean(found.values())
    return report
