"""Soft VQA accuracy (Antol et al. 2015; Goyal et al. 2017) with its two normalisations, traps included.

An answer scores the mean over the ten humans of min(1, matches among the other nine / 3). Rule ``vqa/1`` is that of the
VQA evaluation code, which normalises answers only where the ten humans disagree. Rule ``vqa-evalai/1`` always
normalises, and drops commas and question marks first: TextVQA (M4C), VizWiz and the answers that are handed to the
VQAv2 server. Both keep the original's slips: at most 32 full stops are dropped (a flag passed as a count), only those
that no digit follows, and "none" is 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vqa_words import ARTICLES, CONTRACTIONS, NUMBERS

OFFICIAL: Final = "vqa/1"
EVALAI: Final = "vqa-evalai/1"
PUNCTUATION = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
FULL_STOP = re.compile(r"\.(?!\d)")
COMMA_IN_NUMBER = re.compile(r"\d,\d")
AT_MOST = 32


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    out = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or COMMA_IN_NUMBER.search(text) else " ")
    return FULL_STOP.sub("", out, count=AT_MOST)


def _words(text: str) -> str:
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise(text: str) -> str:
    """The normalisation of the VQA evaluation code."""
    return _words(_punctuation(_one_line(text)))


def evalai(text: str) -> str:
    """The normalisation of the EvalAI server and of M4C."""
    plain = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_punctuation(_one_line(plain)))


def soft_accuracy(answer: str, humans: Sequence[str]) -> float:
    """Share of agreement with ``humans``, all normalised alike: each of them is left out once."""
    matches = Counter(humans)[answer]
    others = [matches - (human == answer) for human in humans]
    return sum(min(1.0, n / 3) for n in others) / len(humans)


def score(text: str, humans: Sequence[str], rule: str = OFFICIAL) -> Reading:
    """The reading of an answer under rule ``vqa/1`` or ``vqa-evalai/1``; an empty answer counts as unread."""
    same: Callable[[str], str] = evalai if rule == EVALAI else normalise
    told, answer = [_one_line(h) for h in humans], _one_line(text)
    if rule == EVALAI or len(set(told)) > 1:
        told, answer = [same(h) for h in told], same(answer)
    value = soft_accuracy(answer, told)
    return Reading(answer or None, {"right": value, "n": 1.0}, value, failed=not text.strip())
