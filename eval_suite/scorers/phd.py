"""Rule ``phd/1``, ours: PhD's authors release no code that reads answers.

The first whole word that is yes or no is the answer. Where there is none, an answer that says the sources disagree
flags that, by ``conflict/2``; all else is unknown, and an answer without a letter or a digit is an error.
"""

from __future__ import annotations

from eval_suite.scorers.answer_words import plain
from eval_suite.scorers.collapse import collapsed
from eval_suite.scorers.conflict import UNKNOWN, flags
from eval_suite.scorers.yes_no import YesNo, first_yes_no

RULE = "phd/1"
OTHER = {"yes": "no", "no": "yes"}


def answer(text: str) -> YesNo | None:
    """Yes or no, None where the text has neither."""
    return first_yes_no(text)


def verdict(text: str, seen: str) -> str:
    """Whom an answer follows, where the picture's answer is ``seen`` and the context's the other."""
    if said := answer(text):
        return "vision" if said == seen else "text"
    bare = plain(text)
    return "error" if collapsed(bare) else "flags" if flags(bare) else UNKNOWN
