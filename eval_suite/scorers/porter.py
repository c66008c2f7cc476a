"""Porter's suffix stripper (Porter 1980, Program 14.3) with the departures that NLTK takes by default.

A released scoring rule stems with ``nltk.stem.PorterStemmer()``; its stems are given here as a fixed part of that rule,
whatever version of that library is installed, or none. Departures: a pool of irregular words, words of one or two
letters as they are, "ies" and "ied" of four letters as "ie", y after a consonant as i, "fulli" and "logi" in step 2,
"bli" for "abli".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby

_VOWELS = frozenset("aeiou")
_IRREGULAR = {
    word: stem
    for stem, words in {
        "sky": "sky skies",
        "die": "dying",
        "lie": "lying",
        "tie": "tying",
        "inning": "inning innings",
        "outing": "outing outings",
        "canning": "canning cannings",
    }.items()
    for word in words.split()
} | {word: word for word in ("news", "howe", "proceed", "exceed", "succeed")}


def _rules(written: str) -> tuple[tuple[str, str], ...]:
    """Pairs of a suffix and what stands for it, from "suffix:other"."""
    return tuple((pair.partition(":")[0], pair.partition(":")[2]) for pair in written.split())


_STEP_2 = _rules(
    "ational:ate tional:tion enci:ence anci:ance izer:ize bli:ble alli:al entli:ent eli:e ousli:ous ization:ize"
    " ation:ate ator:ate alism:al iveness:ive fulness:ful ousness:ous aliti:al iviti:ive biliti:ble fulli:ful"
)
_STEP_3 = _rules("icate:ic ative: alize:al iciti:ic ical:ic ful: ness:")
_STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate"),
    *("iti", "ous", "ive", "ize"),
)


@lru_cache(maxsize=1 << 14)
def stem(word: str) -> str:
    """The stem of a word, in lower case."""
    word = word.lower()
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (_plural, _past, _final_y, _double_suffix, _suffix, _last_suffix, _final_e, _final_ll):
        word = step(word)
    return word


def _consonants(word: str) -> list[bool]:
    """For each letter whether it counts as a consonant: y does at the beginning and after a vowel."""
    out: list[bool] = []
    for letter in word:
        out.append(not out or not out[-1] if letter == "y" else letter not in _VOWELS)
    return out


def _measure(word: str) -> int:
    """How often a run of vowels is followed by a run of consonants."""
    runs = [consonant for consonant, _ in groupby(_consonants(word))]
    return sum(consonant for consonant in runs[1:])


def _has_vowel(word: str) -> bool:
    return not all(_consonants(word))


def _ends_cvc(word: str) -> bool:
    """Whether it ends in consonant, vowel, consonant, the last of them not w, x or y; or is a vowel and a consonant."""
    shape = _consonants(word)
    return (shape[-3:] == [True, False, True] and word[-1] not in "wxy") or shape == [False, True]


def _replaced(word: str, rules: Sequence[tuple[str, str]], fits: Callable[[str], bool]) -> str:
    """The word by the first rule whose suffix it has, where what is before the suffix ``fits``; else as it is."""
    for suffix, other in rules:
        if word.endswith(suffix):
            before = word.removesuffix(suffix)
            return before + other if fits(before) else word
    return word


def _plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    before = next((word.removesuffix(s) for s in ("ed", "ing") if word.endswith(s)), "")
    if not before or not _has_vowel(before):
        return word
    if before.endswith(("at", "bl", "iz")):
        return before + "e"
    if len(before) > 1 and before[-1] == before[-2] and _consonants(before)[-1]:
        return before if before[-1] in "lsz" else before[:-1]
    return before + "e" if _measure(before) == 1 and _ends_cvc(before) else before


def _final_y(word: str) -> str:
    before = word[:-1]
    return before + "i" if word.endswith("y") and len(before) > 1 and _consonants(before)[-1] else word


def _double_suffix(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _double_suffix(word[:-2])
    if word.endswith("logi") and not word.endswith(tuple(suffix for suffix, _ in _STEP_2)):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replaced(word, _STEP_2, lambda before: _measure(before) > 0)


def _suffix(word: str) -> str:
    return _replaced(word, _STEP_3, lambda before: _measure(before) > 0)


def _last_suffix(word: str) -> str:
    suffix = next((s for s in _STEP_4 if word.endswith(s)), "")
    before = word.removesuffix(suffix)
    fits = _measure(before) > 1 and (suffix != "ion" or before.endswith(("s", "t")))
    return before if suffix and fits else word


def _final_e(word: str) -> str:
    before = word[:-1]
    measure = _measure(before)
    return before if word.endswith("e") and (measure > 1 or (measure == 1 and not _ends_cvc(before))) else word


def _final_ll(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
