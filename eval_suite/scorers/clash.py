"""Rule ``clash/1``: the released scoring of CLASH (github.com/tpopordanoska/clash at d9609c3, src/evaluation.py), which
says of an answer which of four kinds it matches.

Open-ended: words in lower case, without articles, 0 to 10 as words, a few adjectives as their nouns, each stemmed; the
answer matches whatever stands in it, both sides too, and a contradiction where it says "conflict" or "contradict".
Multiple choice, strict: the one letter of A to D that stands in round brackets; none where there are several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from eval_suite.scorers.porter import stem

RULE = "clash/1"
CONTRADICTION, IMAGE, TEXT, NONE, IRRELEVANT = (
    "matches_contradiction",
    "matches_image_only",
    "matches_text_only",
    "matches_none",
    "matches_irrelevant",
)
Matches = dict[str, bool]

_ARTICLES = frozenset({"the", "a", "an"})
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ALIKE = {str(n): word for n, word in enumerate(_DIGITS)} | {
    "wooden": "wood",
    "golden": "gold",
    "sandy": "sand",
    "brightly": "bright",
}
_FLAGS = ("conflict", "contradict")
_LETTER = re.compile(r"\(([A-D])\)")
_VERDICTS = {CONTRADICTION: "flags", IMAGE: "vision", TEXT: "text", IRRELEVANT: "unknown", NONE: "unknown"}


def open_ended(text: str, image_only: str, text_only: str) -> Matches:
    """The four flags of an open answer."""
    said = _stems(text)
    found = {
        CONTRADICTION: any(_stands(word, said) for word in _FLAGS),
        IMAGE: _stands(image_only, said),
        TEXT: _stands(text_only, said),
    }
    return {**found, NONE: not any(found.values())}


def multiple_choice(text: str, letters: Mapping[str, str]) -> Matches:
    """The four flags of a choice; ``letters`` has the option's letter of each kind."""
    named = set(_LETTER.findall(text))
    chosen = named.pop() if len(named) == 1 else None
    return {kind: chosen == letters[kind] for kind in (CONTRADICTION, IMAGE, TEXT, IRRELEVANT)}


def verdict(found: Mapping[str, bool]) -> str:
    """What the flags are as a verdict of ours: vision, text or flags where that alone is matched, other where several
    are, unknown (other, and neither side) where none of these is.
    """
    kinds = [_VERDICTS[kind] for kind, matched in found.items() if matched]
    return "other" if len(kinds) > 1 else kinds[0] if kinds else "unknown"


def _stems(text: str) -> str:
    words = (word for word in re.findall(r"\w+", text.lower()) if word not in _ARTICLES)
    return f" {' '.join(stem(_ALIKE.get(word, word)) for word in words)} "


def _stands(answer: str, said: str) -> bool:
    """Whether an answer stands in what was said; one of articles alone stands in all that says something."""
    return bool(answer) and bool(said.strip()) and _stems(answer) in f" {said} "
