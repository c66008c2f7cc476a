"""Closed and open medical questions, after the evaluation of LLaVA-Med (arXiv 2306.00890). Rule ``medical/1``.

A closed question (its answer is yes or no, or its file says so) is right where the answer says the right one of yes and
no and not the other, or, with another right answer, has all of it as words in a row. An open one scores recall: the
share of the right answer's words that the answer has, each as often as it stands there. Words are those of the VQA
evaluation's normalisation, as in LLaVA-Med. Ours: whole words, where the original looks for a part of the text, so that
"normal" says no "no" here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vqa import evalai

RULE = "medical/1"
YES_NO = ("yes", "no")


def is_closed(answer: str, told: str = "") -> bool:
    """Whether a right answer is one of few, by itself or as its file ``told``."""
    return evalai(answer) in YES_NO or told.strip().lower() == "closed"


def medical(text: str, answer: str, closed: bool) -> Reading:
    """One answer beside the right one."""
    said, right = evalai(text).split(), evalai(answer).split()
    if closed:
        hit = _one_of(said, right[0]) if right[0:1] and right[0] in YES_NO and len(right) == 1 else _holds(said, right)
        return Reading(" ".join(said) or None, {"n": 1.0, "closed_n": 1.0, "closed": hit}, hit, failed=not said)
    recall = sum((Counter(said) & Counter(right)).values()) / len(right) if right else 0.0
    return Reading(" ".join(said) or None, {"n": 1.0, "open_n": 1.0, "open": recall}, recall, failed=not said)


def _one_of(said: Sequence[str], right: str) -> float:
    return float({word for word in said if word in YES_NO} == {right})


def _holds(said: Sequence[str], right: Sequence[str]) -> float:
    starts = range(len(said) - len(right) + 1)
    return float(bool(right) and any(list(said[i : i + len(right)]) == list(right) for i in starts))
