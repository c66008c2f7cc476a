"""Rule ``video-mcq/1``, ours: the option that an answer names.

A letter that begins the answer, in brackets or not, or the one that it says "the answer is"; without one the option
whose text alone stands in the answer. Anything else is unread, and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval_suite.scorers.exact import LETTERS
from eval_suite.scorers.reading import Reading, right_or_wrong

RULE = "video-mcq/1"
_FIRST = re.compile(r"\W*(?:option\s+|answer\s*:\s*)?\(?([A-Z])(?:[).:,]|\s*$|\s*\n)", re.IGNORECASE)
_SAYS = re.compile(r"\banswer\s+is:?\s*(?:option\s+)?\(?([A-Z])\b(?!')", re.IGNORECASE)


def letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, or None."""
    known = LETTERS[: len(options)]
    for found in (_FIRST.match(text), _SAYS.search(text)):
        if found and found[1].upper() in known:
            return found[1].upper()
    said = _plain(text)
    named = [i for i, option in enumerate(options) if _plain(option).strip() and _plain(option) in said]
    longest = [i for i in named if not any(i != j and _plain(options[i]) in _plain(options[j]) for j in named)]
    return known[longest[0]] if len(longest) == 1 else None


def reading(text: str, options: Sequence[str], answer: int) -> Reading:
    """``answer`` is the index of the right one of ``options``."""
    found = letter(text, options)
    return right_or_wrong(found, found == LETTERS[answer])


def _plain(text: str) -> str:
    """Words in lower case, with a space before and after each."""
    words = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(words)} "
