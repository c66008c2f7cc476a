"""Whether an answer has collapsed: says nothing, or says the same over and over (SPEC.md 3.3)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from itertools import pairwise

from eval_suite.scorers.answer_words import CJK

REPEATED_SHARE = 0.5
_UNIT = r"((?:[\d{space}]{{0,20}}[^\W\d]){{2}}[\w{space}]{{0,200}}?)"  # two letters at least, digits between them
_WORDS = re.compile(r"\b" + _UNIT.format(space=" ") + r"(?: \1){2}\b")
_GLUED = re.compile(_UNIT.format(space="") + r"\1\1")
_HOST = re.compile(r"\b[a-z]{2,}((?:[A-Z][a-z]+)+)")
_PIECE = re.compile(r"[A-Z][a-z]+")
_SEAM = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])")
_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


def wordless(text: str) -> bool:
    """Empty, or without a letter and a digit."""
    return not any(character.isalnum() for character in text)


def repeats(text: str) -> bool:
    """A unit of at least two letters stands three times running, or more than half of the word bigrams are repeats of
    earlier ones.

    A unit is some words ("two blue two blue two blue") or characters glued together ("RespondRespondRespond"), or a
    piece glued to two words ("fiveRespond aboveRespond"). Case and punctuation are not looked at, digits alone never
    count ("222"), and each character of Chinese, Japanese or Korean is a word.
    """
    text = unicodedata.normalize("NFKC", text)
    pieces = Counter(piece for glued in _HOST.findall(text) for piece in _PIECE.findall(glued))
    if any(count > 1 for count in pieces.values()):
        return True
    whole = _spaced(text)
    return bool(_GLUED.search(whole)) or bool(_WORDS.search(_spaced(_SEAM.sub(" ", text)))) or _bigrams_repeat(whole)


def collapsed(text: str) -> bool:
    """No answer at all, or one that repeats itself."""
    return wordless(text) or repeats(text)


def _spaced(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def _bigrams_repeat(text: str) -> bool:
    found = [pair for pair in pairwise(_WORD.findall(text)) if not all(word.isdecimal() for word in pair)]
    return len(found) > 1 and 1 - len(set(found)) / len(found) > REPEATED_SHARE
