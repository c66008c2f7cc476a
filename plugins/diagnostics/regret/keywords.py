"""Words of regret by severity: ours, and those of the paper's release; where one stands in an answer.

``RELEASED`` are the 97 of the authors' data/key_position.json (github.com/AbnerAI/LLMs-Regret-Before-They-Say-It at
db12a67, MIT). Many of them ("correct", "weak", "false") are no regret in other contexts; ours take something back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

Phrases = Mapping[str, tuple[str, ...]]

OURS: Phrases = {
    "mild": ("sorry", "on second thought", "not quite right", "let me correct", "looking again", "I misread"),
    "moderate": (
        *("I apologize", "I apologise", "my apologies", "you are right", "you're right", "you are correct"),
        *("my mistake", "I made a mistake", "I was mistaken", "I stand corrected", "I reconsider", "I misunderstood"),
    ),
    "severe": (
        *("I was wrong", "I was incorrect", "my answer was wrong", "my answer was incorrect", "my answer is wrong"),
        *("my previous answer was wrong", "my previous answer was incorrect", "my first answer was wrong"),
        *("I take it back", "I take that back", "I retract", "I withdraw", "I regret"),
    ),
}
RELEASED: Phrases = {
    "mild": (
        *("not accurate", "not entirely accurate", "not reliable", "unreliable", "inaccuracies", "not sufficient"),
        *("not adequate", "not helpful", "unhelpful", "not clear", "unclear", "incomplete", "did not fully consider"),
        *("overlooked", "excluded", "not fit", "poor fit", "not in line", "may have been too narrow", "limitations"),
        *("potential for bias", "biases", "difficult to say with certainty", "insufficient evidence", "not supported"),
        *("incomplete information", "lack of experience", "not as advanced as I previously suggested"),
    ),
    "moderate": (
        *("I apologize", "apologize", "apologies", "regret", "regretfully", "should not have"),
        *("should have been more careful", "mistake", "my mistake", "incorrect", "flawed", "invalid"),
        *("misinterpretation", "misunderstanding", "not credible", "not verifiable", "not responsible"),
        *("not respectful", "not safe", "not advisable", "not appropriate", "not suitable", "revise", "revised"),
        *("must revise", "reconsider", "reconsidering", "re-evaluate", "re-evaluating", "correct", "retract"),
        *("withdraw", "discontinue", "discarded", "cannot confirm", "cannot definitively say", "lacked", "outdated"),
        *("misleading", "weak", "confusion", "contradicts", "not representative", "erroneous", "shortcoming"),
        "negligence",
    ),
    "severe": (
        *("regretfully retract", "must withdraw", "fake", "fabricated", "false", "not honest", "dangerous", "illegal"),
        *("misconduct", "negative impacts", "misdiagnoses", "impossible to determine with certainty", "not truthful"),
        *("not trustworthy", "faulty", "offensive", "dismissive", "insensitive", "disrespectful", "not kosher"),
        *("inappropriate", "misrepresentation", "misjudgment"),
    ),
}


class Keyword(NamedTuple):
    """A phrase in an answer, in lower case; ``at``: the character where it begins."""

    phrase: str
    severity: str
    at: int


class Keywords:
    """The phrases that are looked for, whole words in either case."""

    def __init__(self, phrases: Phrases) -> None:
        self.severity = {phrase.lower(): severity for severity, some in phrases.items() for phrase in some}
        longest_first = sorted(self.severity, key=len, reverse=True)
        self.pattern = re.compile("|".join(rf"(?<!\w){re.escape(p)}(?!\w)" for p in longest_first), re.IGNORECASE)

    def first(self, text: str) -> Keyword | None:
        """The first phrase of ``text``, the longest of those that begin there; None without one."""
        match = self.pattern.search(text.replace("’", "'"))
        if match is None:
            return None
        phrase = match[0].lower()
        return Keyword(phrase, self.severity[phrase], match.start())
