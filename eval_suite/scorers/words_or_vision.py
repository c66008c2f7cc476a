"""Rule ``words-or-vision/1``: the released scoring of Words or Vision (github.com/d-ailin/blind-faith-in-text at
4208bfb, raw_code/hf_evaluator.py and utils/metrics.py).

An answer is right where, in lower case, with numbers in digits and without punctuation, it contains a right answer or
stands in one; or where a right answer stands in it by SQuAD's normalisation, which drops articles. What follows the
text is read by the same rule against the answer that the corrupted text gives; that is ours.

A text preference ratio compares the model's own answers: whether the answer to picture and text is, to the letter but
for a full stop at its end, the one to the picture alone, the one to the text alone, both or neither.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

RULE = "words-or-vision/1"

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {
    **{word: str(n) for n, word in enumerate(f"{_ONES} eighteen nineteen".split())},
    **{word: str(10 * n) for n, word in enumerate(_TENS.split(), 2)},
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
}
_NUMBER = re.compile(rf"\b({'|'.join(_NUMBERS)})\b")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def right(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer is right: one that begins with "Error" never is."""
    if text.strip().startswith("Error"):
        return False
    said, plain = _in_digits(text), _squad(text)
    for answer in answers:
        gold = _in_digits(answer)
        if said == gold or (gold and gold in said) or (said and said in gold):
            return True
    return any(_squad(answer) in plain for answer in answers)


def verdict(text: str, vision: Sequence[str], other: Sequence[str]) -> str:
    """Whom an answer follows: vision (a right answer), text (the corrupted one), other (both), unknown (neither), or
    error where it says nothing.
    """
    if not text.strip():
        return "error"
    sides = right(text, vision), right(text, other)
    return {(True, False): "vision", (False, True): "text", (True, True): "other", (False, False): "unknown"}[sides]


def follows(both: str, image: str, words: str) -> str:
    """Which of a model's own answers its answer to both is: that to the image, that to the text, same (one and the
    same), or other.
    """
    said = _bare(both)
    as_image, as_text = said == _bare(image), said == _bare(words)
    return ("same" if as_text else "image") if as_image else "text" if as_text else "other"


def _in_digits(text: str) -> str:
    digits = _NUMBER.sub(lambda found: _NUMBERS[found[1]], text.lower().strip())
    return " ".join(re.sub(r"[^\w\s]", "", digits).split())


def _squad(text: str) -> str:
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def _bare(text: str) -> str:
    return text.strip().removesuffix(".")
