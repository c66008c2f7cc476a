"""The option letter, A or B, that an answer settles on (SPEC.md 3.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from eval_suite.scorers.answer_words import ARTICLES, CJK, Mention, Word, meant, mentions, spelt

_LETTERS = {"a": "A", "b": "B"}
_JOINED = frozenset({"and", "or", "nor", "和", "或", "与", "與", "及", "option", "options"})
_NO_NOUN = re.compile(  # words that no article stands before: "A is correct", "A because the image shows it"
    r"is|isn't|was|wasn't|are|were|be|has|had|does|did|because|as|since|and|or|but|so|if|not|nor|in|on|of|to|by|from"
    r"|for|with|which|that|would|should|could|will|can|cannot|can't|may|might|must|seems|appears|looks|matches|fits"
    r"|rather|instead|than|then|it|i|the|this|these|they|he|she|we|you|please|based|according|due|while|whereas"
    r"|although|though|when|where|after|before|over",
    re.IGNORECASE,
)
_REASONS = frozenset({"because", "since", "although", "though"})
_NEXT_WORD = re.compile(rf"[ \t]+[*_\"'`]*([^\W\d_{CJK}][^\W_{CJK}]*(?:'[a-z]+)?)")
_ABBREVIATED = re.compile(rf"\.[^\W\d_{CJK}]\b|-[^\W_{CJK}]")
_DELIMITED = re.compile(r"\s*[^\w\s]|[ \t]*\n[ \t]*\S")
_DECIDED = re.compile(
    r"(?:\b(?:answer|choice)\s*(?:(?:is|would\s+be|must\s+be|will\s+be)\b|[:：=-])"
    r"|\b(?:choose|select|pick|go\s+with|so|therefore|thus|hence)\b"
    r"|答案(?:是|为|為|[:：])?|[选選](?:择|擇)?(?![项項]))\W*(?:\b(?:option|letter)\b|[选選][项項])?\W*$",
    re.IGNORECASE,
)


def letter(text: str, said: Sequence[Word], options: Mapping[str, str], only: bool = False) -> str | None:
    """ "A" or "B", or None where the answer settles on neither; ``text`` is plain, ``said`` its words, ``options`` the
    texts behind the letters.

    The last one counts, a letter right after "the answer is", "I choose", "so" before others, and one in a reason
    ("because B contradicts the picture") only where there is no other. One inside an option's text ("vitamin B") or an
    article is no letter, a letter that is
    negated or called wrong does not count, and of two that are named together ("A or B", both options copied) neither
    does. With ``only``, two different ones count only where one is right after such words.
    """
    inside = {i for name in mentions(said, options) if name.last - name.first > 1 for i in range(name.first, name.last)}
    found = [
        Mention(_LETTERS[word.text], i, i + 1)
        for i, word in enumerate(said)
        if word.text in _LETTERS and i not in inside and _stands_for_an_option(text, said, i)
    ]
    kept = meant(text, said, found)
    kept = [mention for mention in kept if not _in_a_reason(said, mention)] or kept
    decided = [mention for mention in kept if _DECIDED.search(text[: said[mention.first].start])]
    if not kept or (only and not decided and len({mention.name for mention in kept}) > 1):
        return None
    last = (decided or kept)[-1]
    at = kept.index(last)
    neighbours = [(kept[i], kept[i + 1]) for i in (at - 1, at) if 0 <= i and i + 1 < len(kept)]
    return None if any(_together(said, *pair, options) for pair in neighbours) else last.name


def _in_a_reason(said: Sequence[Word], mention: Mention) -> bool:
    clause = said[mention.first].clause
    return next(word for word in said if word.clause == clause).text in _REASONS


def _together(said: Sequence[Word], one: Mention, other: Mention, options: Mapping[str, str]) -> bool:
    """Whether nothing stands between two different letters but the first one's text and "and" or "or"."""
    between = [word.text for word in said[one.last : other.first] if word.text not in ARTICLES | _JOINED]
    return one.name != other.name and between in (
        [],
        [w for w in spelt(options[one.name]) if w not in ARTICLES | _JOINED],
    )


def _stands_for_an_option(text: str, said: Sequence[Word], i: int) -> bool:
    word = said[i]
    before, after = text[: word.start], text[word.end :]
    if re.search(r"[^\W\d_]\.$", before) or _ABBREVIATED.match(after):
        return False  # a.m., U.S.A., A-frame
    if word.text != "a":
        return True
    capital, following = text[word.start] == "A", _NEXT_WORD.match(after)
    if following:
        noun = not _NO_NOUN.fullmatch(following[1])
        return not (noun and (following[1][0].islower() or not capital))
    alone = i == 0 or said[i - 1].clause != word.clause
    if capital or alone or _DELIMITED.match(after):
        return True
    # a bare "a" at the end: the letter, or an article whose noun was cut off
    return bool(_DECIDED.search(before)) or said[i - 1].text in {"answer", "option", "choice", "letter"}
