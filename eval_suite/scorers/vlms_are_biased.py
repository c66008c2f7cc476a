"""Rule ``vlms-are-biased/1``: the scoring that VLMs Are Biased names as its own (EvolvingLMMs-Lab/lmms-eval at ca3c1a1,
tasks/vlms_are_biased/utils.py). The benchmark's repository has none.

An answer in lower case, without curly brackets around it, is right where it equals the right answer and biased where it
equals the expected bias. Where it equals neither, its digits, all strung together, are held against those of either.
"""

from __future__ import annotations

from eval_suite.scorers.reading import Reading

RULE = "vlms-are-biased/1"


def score(text: str, right: str, bias: str) -> Reading:
    """Adds to ``right``, ``biased`` and ``n``; an answer that says nothing is counted as unread."""
    said, gold, expected = (_bare(each) for each in (text, right, bias))
    verdict = said == gold, said == expected
    if not any(verdict) and (digits := _digits(said)):
        verdict = digits == _digits(gold), digits == _digits(expected)
    is_right, is_biased = verdict
    sums = {"right": float(is_right), "biased": float(is_biased), "n": 1.0}
    return Reading(said or None, sums, float(is_right), failed=not said)


def _bare(text: str) -> str:
    return text.strip().lower().strip("{}").strip()


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit())
