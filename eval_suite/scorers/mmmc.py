"""Rule ``mmmc-judge/1``, ours: MMMC's authors release no code that scores, and their judge's prompt is not public.

A judge is told the question, what is wrong with it, the reference answer and the answer. It says NOTICES, GOES ALONG or
NEITHER of a question that conflicts with its picture, RIGHT or WRONG of another; the last of these words counts. What
is none of them is a parse failure, and asked for again.
"""

from __future__ import annotations

import re

from eval_suite.scorers.reading import Reading

RULE = "mmmc-judge/1"
KINDS = {
    "object": "The question supposes something that the picture does not show",
    "attribute": "The question supposes a property that what the picture shows does not have",
    "relation": "The question supposes a relation that does not hold in the picture",
}
CONFLICT = """\
A question about a picture supposes something that is not so. {kind}{about}.

Question: {question}
Reference answer: {reference}
Answer to judge: {answer}

Does the answer to judge say that what the question supposes is not so, in whatever words, or does it answer as if it \
were? Write one of these and nothing else:
NOTICES (it says so)
GOES ALONG (it answers as if it were so)
NEITHER (it does neither, such as a refusal or an empty answer)"""
CLEAN = """\
Question about a picture: {question}
Reference answer: {reference}
Answer to judge: {answer}

Does the answer to judge mean the same as the reference answer? Write one word and nothing else: RIGHT or WRONG."""

_WORDS = re.compile(r"\b(NOTICES|GOES ALONG|NEITHER|RIGHT|WRONG)\b", re.IGNORECASE)


def prompt(task: str, question: str, reference: str, about: str, answer: str) -> str:
    """What a judge is asked about an answer; ``task`` is the kind of conflict, or none."""
    if task == "none":
        return CLEAN.format(question=question, reference=reference, answer=answer)
    what = f": {about.strip()}" if about.strip() else ""
    return CONFLICT.format(kind=KINDS[task], about=what, question=question, reference=reference, answer=answer)


def verdict(said: str) -> str | None:
    """The last verdict that a judge wrote, None where there is none."""
    found = _WORDS.findall(said)
    return found[-1].upper() if found else None


def reading(said: str | None, conflicts: bool) -> Reading:
    """What a judge's answer adds to the counts."""
    found = None if said is None else verdict(said)
    if conflicts:
        sums = {"notices": found == "NOTICES", "hallucinates": found == "GOES ALONG", "conflicts": True}
    else:
        sums = {"right": found == "RIGHT", "clean": True}
    value = float(found == ("NOTICES" if conflicts else "RIGHT"))
    return Reading(found, {k: float(v) for k, v in sums.items()}, value, found is None, again=found is None)
