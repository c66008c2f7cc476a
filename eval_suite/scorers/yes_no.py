"""Yes-or-no answers: POPE, MME and HallusionBench, each by its own rule.

``pope/1`` (Li et al. 2023, evaluate.py): of the first sentence, without commas, a word "No", "not" or "no" means no;
everything else means yes, "NO", "cannot" and "can't" included. Where that sentence has no word yes, no or not, this
counts as a parse failure, and is still scored as the rule has it. ``mme/1`` (Fu et al. 2023, calculation.py): yes or no
within the first four characters of the lower-cased answer; else "other", which is wrong. ``hallusion-string/1``: the
first whole word that is yes or no; neither is "unclear".
"""

from __future__ import annotations

import re
from typing import Literal

from eval_suite.scorers.reading import Reading, right_or_wrong

POPE, MME, HALLUSION = "pope/1", "mme/1", "hallusion-string/1"
YesNo = Literal["yes", "no"]
_EITHER = re.compile(r"\b(yes|no|not)\b", re.IGNORECASE)


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


def hallusion(verdict: bool | None, shown: bool) -> Reading:
    """``verdict`` None is "unclear", which is right where a question about a picture was asked without it (``shown``
    false).
    """
    right = bool(verdict) or (verdict is None and not shown)
    parsed = {True: "correct", False: "incorrect", None: None}[verdict]
    return right_or_wrong(parsed, right)
