"""Writing: questions and contexts in four grades of difficulty, with phrasings that no two splits share.

Textual tiers (after the colour set of arXiv 2511.02243): 0 direct, 1 indirect through common knowledge,
2 one link ("the star has the same color as the box. the box is red."), 3 two links.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

TEXT_TIERS = 4
HOLDERS = {
    "thing": ("the box", "the flag", "the cup", "the hat", "the lamp", "the door", "the kite", "the bag"),
    "person": (
        "the nurse",
        "the pilot",
        "the teacher",
        "the farmer",
        "the singer",
        "the driver",
        "the cook",
        "the judge",
    ),
    "group": ("cups", "boxes", "flags", "hats", "lamps", "doors", "kites", "bags"),
}
KNOWLEDGE = {
    "red": "a ripe tomato",
    "green": "fresh grass",
    "blue": "a clear sky",
    "yellow": "a ripe banana",
    "purple": "a bunch of grapes",
    "orange": "a carrot",
    "circle": "a coin",
    "square": "a chess tile",
    "triangle": "a slice of pizza",
    "star": "a sheriff badge",
    "cross": "a plus sign",
    "heart": "a valentine card",
    "solid": "a blank wall",
    "striped": "a zebra",
    "dotted": "a ladybug",
    "checked": "a chess board",
    "hollow": "an empty ring",
    "one": "moons over the earth",
    "two": "eyes on a face",
    "three": "wheels on a tricycle",
    "four": "legs on a dog",
    "five": "fingers on a hand",
    "left": "the first letter of a word",
    "right": "the last letter of a word",
    "above": "the roof of a house",
    "below": "the cellar of a house",
    "happy": "a winner",
    "sad": "a mourner",
    "angry": "someone robbed",
    "surprised": "someone who saw a ghost",
    "running": "someone late for a train",
    "jumping": "a frog",
    "sitting": "a student in class",
    "sleeping": "a baby at night",
    "waving": "someone saying goodbye",
    "tennis": "the game of wimbledon",
    "football": "the game of the world cup",
    "golf": "the game with eighteen holes",
    "skiing": "the game of snowy mountains",
    "basketball": "the game with tall players",
}


@dataclass(frozen=True)
class Grammar:
    """Sentence forms of one task. ``{s}`` subject, ``{v}`` value, ``{o}`` other holder, ``{k}`` known thing.

    Each tuple's last entry is for test alone, the one before it for dev alone, all others for train.
    """

    question: str
    says: tuple[str, ...]
    same: tuple[str, ...]
    known: tuple[str, ...]
    holders: str = "thing"


def _noun(noun: str, holders: str = "thing") -> Grammar:
    return Grammar(
        question="",
        says=(
            f"the {noun} of {{s}} is {{v}}.",
            f"{{s}} has a {{v}} {noun}.",
            f"{{v}} is the {noun} of {{s}}.",
            f"we see a {{v}} {noun} on {{s}}.",
            f"on {{s}} we see a {noun} that is {{v}}.",
            f"{{s}} has a {noun}, and the {noun} is {{v}}.",
        ),
        same=(
            f"{{s}} has the same {noun} as {{o}}.",
            f"the {noun} of {{s}} is the {noun} of {{o}}.",
            f"{{s}} and {{o}} have the same {noun}.",
            f"the {noun} of {{s}} is the same as that of {{o}}.",
            f"the same {noun} is on {{s}} and {{o}}.",
            f"{{o}} has a {noun}, and {{s}} has the same {noun}.",
        ),
        known=(
            f"{{s}} has the {noun} of {{k}}.",
            f"the {noun} of {{s}} is that of {{k}}.",
            f"we see on {{s}} the {noun} of {{k}}.",
            f"{{s}} and {{k}} have the same {noun}.",
            f"the {noun} of {{k}} is the {noun} of {{s}}.",
            f"{{k}} and {{s}} have the same {noun}.",
        ),
        holders=holders,
    )


def _person(verb: str, asks: str) -> Grammar:
    return Grammar(
        question=asks,
        says=(
            f"{{s}} is {verb}{{v}}.",
            f"we see that {{s}} is {verb}{{v}}.",
            f"{verb}{{v}} is what {{s}} is.",
            f"{{s}} is here and is {verb}{{v}}.",
            f"what we see is that {{s}} is {verb}{{v}}.",
            f"here {{s}} is {verb}{{v}}.",
        ),
        same=(
            "{s} is doing the same as {o}.",
            "{s} is like {o}.",
            "{s} and {o} are the same.",
            "we see that {s} is like {o}.",
            "what {o} is, {s} is.",
            "here {s} is the same as {o}.",
        ),
        known=(
            "{s} is like {k}.",
            "{s} is doing the same as {k}.",
            "we see that {s} is like {k}.",
            "{s} and {k} are the same.",
            "what {k} is, {s} is.",
            "here {s} is like {k}.",
        ),
        holders="person",
    )


def _with_question(grammar: Grammar, question: str) -> Grammar:
    return Grammar(question, grammar.says, grammar.same, grammar.known, grammar.holders)


GRAMMARS = {
    "color": _with_question(_noun("color"), "What color is {s}?"),
    "object_recognition": _with_question(_noun("shape"), "What shape is {s}?"),
    "attribute": _with_question(_noun("pattern"), "What pattern does {s} have?"),
    "sentiment_understanding": _person("", "How does {s} feel?"),
    "activity_recognition": _person("", "What is {s} doing?"),
    "sport_recognition": _person("playing ", "What sport is {s} playing?"),
    "counting": Grammar(
        question="How many {s} are there?",
        says=(
            "there are {v} {s}.",
            "we see {v} {s}.",
            "the number of {s} is {v}.",
            "{v} is the number of {s}.",
            "{v} {s} are there.",
            "of {s} we see {v}.",
        ),
        same=(
            "there are as many {s} as {o}.",
            "we see as many {s} as {o}.",
            "the number of {s} is the number of {o}.",
            "the number of {s} and {o} is the same.",
            "as many {s} as {o} are there.",
            "of {s} we see as many as {o}.",
        ),
        known=(
            "there are as many {s} as {k}.",
            "we see as many {s} as {k}.",
            "the number of {s} is the number of {k}.",
            "the number of {s} and {k} is the same.",
            "as many {s} as {k} are there.",
            "of {s} we see as many as {k}.",
        ),
        holders="group",
    ),
    "positional_reasoning": Grammar(
        question="Where is {s}?",
        says=(
            "{s} is on the {v} side.",
            "the side of {s} is {v}.",
            "we see {s} on the {v} side.",
            "{v} is the side of {s}.",
            "on the {v} side we see {s}.",
            "{s} has a side, and the side is {v}.",
        ),
        same=(
            "{s} is on the same side as {o}.",
            "the side of {s} is the side of {o}.",
            "{s} and {o} are on the same side.",
            "we see {s} on the side of {o}.",
            "the same side has {s} and {o}.",
            "on the side of {o} we see {s}.",
        ),
        known=(
            "{s} is on the side of {k}.",
            "the side of {s} is that of {k}.",
            "we see {s} on the side of {k}.",
            "{s} and {k} are on the same side.",
            "the same side has {s} and {k}.",
            "on the side of {k} we see {s}.",
        ),
    ),
}

OPENERS = (
    "",
    "",
    "according to the note, ",
    "the caption says: ",
    "in this picture, ",
    "as the report says, ",
    "the note says: ",
    "in the report, ",
)
CLOSERS = (
    "",
    "",
    "it was a quiet day.",
    "the picture is from last week.",
    "a friend wrote this note.",
    "this is all we know.",
    "it was a day of last week.",
    "a friend wrote this report.",
)


def phrasing(forms: tuple[str, ...], split: str, rng: Random) -> str:
    """A form that belongs to ``split`` alone (train: all but the last two)."""
    return rng.choice(forms[:-2]) if split == "train" else forms[-2 if split == "dev" else -1]


def write_context(
    task: str, subject: str, value: str, tier: int, split: str, rng: Random, decoys: tuple[str, ...] = ()
) -> str:
    """A context that claims ``value`` of ``subject`` in the wording of ``split`` at textual ``tier``.

    Half of the linked contexts (tiers 2 and 3) also claim one of ``decoys`` of a holder outside the chain,
    so that the links have to be followed.
    """
    grammar = GRAMMARS[task]
    first, second, stranger = rng.sample(HOLDERS[grammar.holders], 3)

    def say(forms: tuple[str, ...], **words: str) -> str:
        return phrasing(forms, split, rng).format(**words)

    if tier == 0:
        sentences = [say(grammar.says, s=subject, v=value)]
    elif tier == 1:
        sentences = [say(grammar.known, s=subject, k=KNOWLEDGE[value])]
    elif tier == 2:
        sentences = [say(grammar.same, s=subject, o=first), say(grammar.says, s=first, v=value)]
    else:
        sentences = [
            say(grammar.same, s=subject, o=first),
            say(grammar.same, s=first, o=second),
            say(grammar.says, s=second, v=value),
        ]
    if tier >= 2 and decoys and rng.random() < 0.5:
        sentences.insert(rng.choice((0, len(sentences))), say(grammar.says, s=stranger, v=rng.choice(decoys)))
    opener, closer = phrasing(OPENERS, split, rng), phrasing(CLOSERS, split, rng)
    return " ".join(part for part in (opener + sentences[0], *sentences[1:], closer) if part)


def ask(task: str, subject: str) -> str:
    return GRAMMARS[task].question.format(s=subject)


def describe(task: str, subject: str, value: str) -> list[str]:
    """Sentences that say ``value`` of ``subject`` directly, in the phrasings of all splits."""
    return [form.format(s=subject, v=value) for form in GRAMMARS[task].says]
