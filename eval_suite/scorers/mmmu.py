"""MMMU's answer parser (Yue et al. 2024, eval_utils.py at 51ce7f3), with a generator of its own for each sample.

Rule ``mmmu/3``. A choice is looked for as "(A)", as "A" with a space on both sides, and in answers of more than five
words as an option's text; of several the last one counts; of none, one is drawn at random, which is reported as a
guess. The original draws from the global generator, so that its score depends on what ran before; here a sample's draw
depends on its id and the seed alone. An open answer is right where a number or text among its key parts equals
(numbers) or contains (texts) an accepted answer. ``mmmu/2`` left a sentence out that ends with an announcing word, as
in "The answer is" before a line break. ``mmmu/1`` took its choices by lmms-eval's rule, by which "DNA is" and "the USA"
name option A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

from eval_suite.scorers.reading import Reading, right_or_wrong

RULE = "mmmu/3"
TRIMMED = (",", ".", "!", "?", ";", ":", "'")
TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def choice(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that ``text`` names among ``options`` (letter to text), or None."""
    for mark in TRIMMED:
        text = text.strip(mark)
    text = f" {text} "
    for mark in ("({})", " {} "):
        if found := [letter for letter in options if mark.format(letter) in text]:
            return _last(found, [text.rfind(mark.format(letter)) for letter in found])
    if len(text.split()) > 5 and (found := [k for k, option in options.items() if option.lower() in text.lower()]):
        return _last(found, [text.lower().rfind(options[k].lower()) for k in found])
    return None


def _last(found: Sequence[str], places: Sequence[int]) -> str:
    return found[places.index(max(places))]


def score_choice(text: str, options: Mapping[str, str], answer: str, sample: str, seed: int) -> Reading:
    said = choice(text, options)
    guess = said is None
    said = Random(f"{seed}/{sample}").choice(list(options)) if guess else said
    return right_or_wrong(said, said == answer, guessed=guess)


def normal(text: str) -> list[str | float]:
    """A number rounded to two places, or the lower-cased text (a single character with a space before or after it)."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def key_parts(text: str) -> list[str]:
    """What follows the last word that announces a result, in each sentence; the whole text where there is none."""
    parts, text = [], text.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", text)
    for i, sentence in enumerate(sentences):
        marks = (*KEYS, "=") if i == len(sentences) - 1 else KEYS
        shortest = ""
        for tail in [sentence.split(mark)[-1].strip() for mark in marks if mark in sentence]:
            if not shortest or len(tail) < len(shortest):  # the original's: an empty tail gives way to the next one
                shortest = tail
        if shortest and shortest not in TRIVIAL:
            parts.append(shortest)
    return parts or [text]


def score_open(text: str, answers: Sequence[str]) -> Reading:
    parts = key_parts(text)
    said = [
        n
        for p in parts + [number for p in parts for rule in NUMBERS for number in re.findall(rule, p)]
        for n in normal(p)
    ]
    accepted = [n for answer in answers for n in normal(answer)]
    right = any(
        p in accepted if isinstance(p, float) else any(isinstance(a, str) and a in p for a in accepted) for p in said
    )
    return right_or_wrong(parts[0] or None, right)
