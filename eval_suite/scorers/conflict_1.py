"""Rule ``conflict/1``, as it was: results made by it keep its name, and can be put beside those of its successor
(``conflict``).

An answer is degenerate, hence an error, if it is empty or more than half of its word bigrams
repeat. Where the model reasons first, what follows its last "answer is" counts. A choice is the first standalone A or
B, else the option whose words alone are found; an open answer is the modality whose words alone are found. Otherwise
the choice is unparsable, an error, and the open answer is ``other``.
"""

from __future__ import annotations

import re
from itertools import pairwise

RULE = "conflict/1"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
REPEATED_SHARE = 0.5


def normalize(text: str) -> str:
    """Lower case, no punctuation, no articles, digits as words; single spaces around every word."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    words = [NUMBERS[int(w)] if w.isdecimal() and int(w) < len(NUMBERS) else w for w in words]
    return f" {' '.join(w for w in words if w not in ('a', 'an', 'the'))} "


def says(text: str, answer: str) -> bool:
    """Whether ``answer`` stands in ``text`` as whole words."""
    return normalize(answer).strip() != "" and normalize(answer) in normalize(text)


def degenerate(text: str) -> bool:
    """Empty, or more than half of the word bigrams are repeats of earlier ones."""
    words = text.split()
    bigrams = list(pairwise(words))
    return not words or (len(bigrams) > 1 and 1 - len(set(bigrams)) / len(bigrams) > REPEATED_SHARE)


def final_part(text: str) -> str:
    """What follows the last "answer is" of a reasoned answer; the whole text where there is none."""
    return re.split(r"answer is:?", text, flags=re.IGNORECASE)[-1]


def _by_words(text: str, vision: str, text_answer: str) -> str | None:
    found = [name for name, answer in (("vision", vision), ("text", text_answer)) if says(text, answer)]
    return found[0] if len(found) == 1 else None


def judge_choice(text: str, vision: str, text_answer: str, vision_first: bool) -> str:
    """The modality behind an answer to "A. ... B. ..."; ``vision_first``: option A is the vision answer."""
    if degenerate(text):
        return "error"
    answer = final_part(text).strip()
    if letter := re.search(r"\b([AB])\b", answer):
        return "vision" if (letter[1] == "A") == vision_first else "text"
    return _by_words(answer, vision, text_answer) or "error"


def judge_open(text: str, vision: str, text_answer: str) -> str:
    """The modality that an open answer's words name."""
    if degenerate(text) or degenerate(final_part(text)):
        return "error"
    return _by_words(final_part(text), vision, text_answer) or "other"


def judge(form: str, text: str, vision: str, text_answer: str) -> str:
    """The verdict on one answer; ``form`` is order1 (vision answer first), order2 or open."""
    if form == "open":
        return judge_open(text, vision, text_answer)
    return judge_choice(text, vision, text_answer, form == "order1")
