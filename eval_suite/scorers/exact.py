"""Exact match: GQA, IconQA and ScienceQA.

``gqa/1``: lower case and no full stop at the end (the conversion script of LLaVA-1.5, then GQA's equality).
``iconqa/2``: the stripped text is the answer as it is written, case included (MoReS, arXiv 2412.04871, evaluation
script); ``iconqa/1`` stripped the answer too.
``scienceqa/1``: the answer is a letter, or begins with "X. ", or says "The answer is X." exactly once (LLaVA's script);
everything else is a failure and wrong.
"""

from __future__ import annotations

import re

from eval_suite.scorers.reading import Reading, right_or_wrong

GQA, ICONQA, SCIENCEQA = "gqa/1", "iconqa/2", "scienceqa/1"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SQA_LETTERS = "ABCDE"


def gqa_answer(text: str) -> str:
    return text.strip().rstrip(".").lower()


def gqa(text: str, answer: str) -> Reading:
    return right_or_wrong(gqa_answer(text) or None, gqa_answer(text) == answer)


def iconqa(text: str, answer: str) -> Reading:
    return right_or_wrong(text.strip() or None, text.strip() == answer)


def sqa_letter(text: str) -> str | None:
    """The letter that an answer names, by LLaVA's three rules."""
    if text in SQA_LETTERS and len(text) == 1:
        return text
    if len(text) >= 3 and text[0] in SQA_LETTERS and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else None


def scienceqa(text: str, choices: int, answer: int) -> Reading:
    """``answer`` is the index of the right one of ``choices`` options; a letter that is no option is wrong, yet
    read.
    """
    letter = sqa_letter(text.strip())
    return right_or_wrong(
        letter, letter is not None and letter in SQA_LETTERS[:choices] and SQA_LETTERS.index(letter) == answer
    )
