"""Yes-or-no answers: POPE, MME and HallusionBench, each by its own rule.

``pope/1`` (Li et al. 2023, evaluate.py): of the first sentence, without commas, a word "No", "not" or "no" means no;
everything else means yes, "NO", "cannot" and "can't" included. Where that sentence has no word yes, no or not, this
counts as a parse failure, and is still scored as the rule has it. ``mme/1`` (Fu et al. 2023, calculation.py): yes or no
within the first four characters of the lower-cased answer; else "other", which is wrong. ``hallusion-string/2``, ours:
what an answer says after its thoughts, by whole words: "yes or no" and "no idea" say neither, "not yes" says no, the
"no" of "there is no difference" gives way to one that stands by itself, and of both the last counts after a word such
as "but" or "wait"; none is "unclear". (``hallusion-string/1`` took the first whole word that is yes or no.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from eval_suite.scorers.answer_words import plain
from eval_suite.scorers.conflict import answered
from eval_suite.scorers.reading import Reading, right_or_wrong

POPE, MME, HALLUSION = "pope/1", "mme/1", "hallusion-string/2"
YesNo = Literal["yes", "no"]
_EITHER = re.compile(r"\b(yes|no|not)\b", re.IGNORECASE)
_OTHER: Mapping[str, YesNo] = {"yes": "no", "no": "yes"}
_ALONE: Mapping[str, YesNo] = {
    **dict.fromkeys(("y", "true", "correct", "是", "有"), "yes"),
    **dict.fromkeys(("n", "false", "incorrect", "不是", "没有"), "no"),
}
_SAID = re.compile(r"(?<![a-z0-9])(yes|no)(?![a-z0-9]|-[a-z])")
_ASIDE = re.compile(
    r"(?<![a-z0-9])(?:yes|no)\s*(?:/|\b(?:or|and|nor)\b)\s*(?:yes|no)(?![a-z0-9])"
    r"|\bno(?:\.?\s*\d|\s+(?:way\s+to|ideas?|one|longer|doubt|images?|pictures?|figures?|charts?|information"
    r"|data|evidence|context)\b)"
    r"|(?:n't|\bnot|\bcannot)\s+(?:say|answer)\s+(?:yes|no)\b"
)
_NOT = re.compile(r"\bnot\s+(?:a\s+)?$")
_NEAR = 20  # characters that tell how a word is meant
_TURN = re.compile(r"\b(?:but|wait|sorry|actually|rather)\b|\?|…|\.\.\.")


def pope_answer(text: str) -> YesNo:
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope(text: str, label: YesNo, split: str) -> Reading:
    """Adds one to ``split``/tp, fp, tn or fn; yes is the positive class."""
    said = pope_answer(text)
    cell = ("t" if said == label else "f") + ("p" if said == "yes" else "n")
    return Reading(
        said, {f"{split}/{cell}": 1.0}, float(said == label), failed=_EITHER.search(text.split(".")[0]) is None
    )


def mme_answer(text: str) -> YesNo | None:
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def mme(text: str, label: YesNo) -> Reading:
    said = mme_answer(text.strip())
    return right_or_wrong(said, said == label)


def first_yes_no(text: str) -> YesNo | None:
    found = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
    if found is None:
        return None
    return "yes" if found[1].lower() == "yes" else "no"


def settled_yes_no(text: str) -> YesNo | None:
    """What an answer settles on by ``hallusion-string/2``; None where it says neither, or both alike."""
    text = plain(answered(text)).lower()
    if alone := _ALONE.get(re.sub(r"[\W_]+", "", text)):
        return alone
    text = _ASIDE.sub(lambda aside: "#" * len(aside[0]), text)
    found = list(_SAID.finditer(text))
    spoken = [word for word in found if not _determines(text, word)] or found
    said = {_meant(text, word) for word in spoken}
    if not said or (len(said) > 1 and not _TURN.search(text[spoken[0].end() : spoken[-1].start()])):
        return None
    return _meant(text, spoken[-1])


def _meant(text: str, word: re.Match[str]) -> YesNo:
    said: YesNo = "yes" if word[1] == "yes" else "no"
    return _OTHER[said] if _NOT.search(_before(text, word)) else said


def _determines(text: str, word: re.Match[str]) -> bool:
    """Whether it is the "no" of "there is no dog"."""
    after = text[word.end() : word.end() + _NEAR]
    own = bool(re.match(r" +[a-z]", after)) and bool(re.search(r"[a-z0-9]\s+$", _before(text, word)))
    return word[1] == "no" and own


def _before(text: str, word: re.Match[str]) -> str:
    return text[max(0, word.start() - _NEAR) : word.start()]


def hallusion(verdict: bool | None, shown: bool) -> Reading:
    """``verdict`` None is "unclear", which is right where a question about a picture was asked without it (``shown``
    false).
    """
    right = bool(verdict) or (verdict is None and not shown)
    parsed = {True: "correct", False: "incorrect", None: None}[verdict]
    return right_or_wrong(parsed, right)
