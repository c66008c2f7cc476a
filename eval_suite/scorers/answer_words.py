"""The words of an answer, and which of the given names it says without taking them back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval_suite.scorers.numbers import CHINESE, chinese_number, said_number

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
ARTICLES = frozenset({"a", "an", "the"})
PASSED_OVER = ARTICLES | {"-"}
_TOKEN = re.compile(
    rf"(?P<number>\d+(?:,\d{{3}})*(?:\.\d+)?(?![^\W_{CJK}]))|(?P<chinese>{CHINESE[0]}{CHINESE[1]})|[{CJK}]"
    rf"|[^\W_{CJK}]+(?:'[^\W_{CJK}]+)*|(?P<end>[.,;:!?。，、；：！？…\n])|(?P<range>[-~–—])"
)
_LONGEST = 40  # words of a number
_TURN = re.compile(r"but|so|and|because|however|although|though|while|whereas|since|therefore|thus|hence")
_NOT = re.compile(r"not|cannot|neither|nor|never|\w*n't")
_BEFORE = (  # what takes back the name right after it
    ("no",), ("without",), ("unlike",), ("except",), ("excluding",), ("rather", "than"), ("other", "than"),
    ("more", "than"), ("less", "than"), ("fewer", "than"), ("instead", "of"),
)  # fmt: skip
_RANGE = frozenset({"-", "to", "or", "至", "到", "或"})
_NOT_CHINESE, _PASSED = frozenset("不没沒非无無别"), frozenset("是有选選该該应應会會能像在太很")
_SOURCES = frozenset({"sources", "modalities", "inputs", "accounts", "contradict", "conflict", "disagree", "differ"})
_AFTER = re.compile(
    r"\s*(?:(?:(?:is|was|are|were)\s+not|isn't|wasn't|aren't)(?=\s*(?:$|[^\w\s]|(?:correct|right|true|the|an?|it)\b))"
    r"|(?:is|was|are|were)\s+(?:wrong|incorrect|false)\b|是?(?:不对|不對|错|錯|不正确|不正確))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Word:
    """A word in lower case (numbers as digits), its place in the text, and which clause it stands in."""

    text: str
    start: int
    end: int
    clause: int


@dataclass(frozen=True)
class Mention:
    """A name that stands in an answer: which one, and words ``first`` to ``last`` (exclusive)."""

    name: str
    first: int
    last: int


def plain(text: str) -> str:
    """Full-width letters, digits and punctuation as ordinary ones, and straight apostrophes."""
    return unicodedata.normalize("NFKC", text).replace("\u2019", "'")


def words(text: str) -> list[Word]:
    """The words of a ``plain`` text: number words and Chinese numerals as digits, each other Chinese, Japanese or
    Korean character one word; dashes are kept as "-" between numbers only. A clause ends at punctuation, and before a
    word such as "but".
    """
    found: list[Word] = []
    clause = 0
    for token in _TOKEN.finditer(text):
        if token["end"]:
            clause += 1
            continue
        said = _read(token)
        clause += bool(_TURN.fullmatch(said))
        found.append(Word(said, token.start(), token.end(), clause))
    return _without_dashes(_joined_numbers(found))


def mentions(said: Sequence[Word], names: Mapping[str, str]) -> list[Mention]:
    """Every place where one of ``names`` {key: text} stands as whole words, articles aside; where several do, the
    longest counts ("not eating", not "eating").
    """
    sought = sorted(((key, spelt(text)) for key, text in names.items()), key=lambda item: -len(item[1]))
    found, at = [], 0
    while at < len(said):
        ends = ((key, _end(said, at, name)) for key, name in sought)
        key, end = next(((key, end) for key, end in ends if end), (None, 0))
        if key is not None:
            found.append(Mention(key, at, end))
        at = max(at + 1, end)
    return found


def _end(said: Sequence[Word], at: int, name: Sequence[str]) -> int:
    """Where a name that begins with the word ``at`` ends; 0 where it does not stand there."""
    for i, sought in enumerate(name):
        while i and at < len(said) and said[at].text in PASSED_OVER and said[at].text != sought:
            at += 1
        if at >= len(said) or said[at].text != sought:
            return 0
        at += 1
    return at if name else 0


def spelt(name: str) -> list[str]:
    """The words of a name but for its articles; what ends it is none ("vitamin A")."""
    said = [word.text for word in words(plain(name)) if word.text != "-"]
    return [word for i, word in enumerate(said) if word not in ARTICLES or i + 1 == len(said)]


def meant(text: str, said: Sequence[Word], found: Sequence[Mention]) -> list[Mention]:
    """The mentions that are not taken back: not negated, not in a range of numbers, not called wrong; "the two sources"
    counts none.
    """
    kept: list[Mention] = []
    before: tuple[Mention, bool] | None = None
    for mention in found:
        taken_back = _negated(said, mention, before)
        before = (mention, taken_back)
        counts = any(word.text in _SOURCES for word in said[mention.last : mention.last + 1])
        wrong = _AFTER.match(text, said[mention.last - 1].end)
        if not (taken_back or counts or wrong or _ranged(said, mention)):
            kept.append(mention)
    return kept


def _read(token: re.Match) -> str:
    if token["number"]:
        number = token["number"].replace(",", "")
        return number.rstrip("0").rstrip(".") if "." in number else number
    if token["chinese"]:
        return chinese_number(token["chinese"])
    return "-" if token["range"] else token[0].casefold()


def _joined_numbers(found: list[Word]) -> list[Word]:
    """Number words as digits, "twenty-three" and "two hundred and five" as one."""
    out: list[Word] = []
    at = 0
    while at < len(found):
        said = said_number(_together(found, at))
        n, text = said or (1, found[at].text)
        out.append(Word(text, found[at].start, found[at + n - 1].end, found[at].clause))
        at += n
    return out


def _together(found: Sequence[Word], at: int) -> list[str]:
    """The words from one on that no punctuation parts; "and" begins a clause of its own."""
    clause = found[at].clause
    out: list[str] = []
    for i in range(at, min(at + _LONGEST, len(found))):
        clause += out != [] and found[i].text == "and"
        if found[i].clause != clause:
            break
        out.append(found[i].text)
    return out


def _without_dashes(found: list[Word]) -> list[Word]:
    def number(i: int) -> bool:
        return 0 <= i < len(found) and found[i].text[:1].isdecimal()

    return [w for i, w in enumerate(found) if w.text != "-" or (number(i - 1) and number(i + 1))]


def _ranged(said: Sequence[Word], mention: Mention) -> bool:
    """Whether the mention is an end of a range ("2-3", "two or three", "two dogs or three"): it names no number."""

    def number(i: int) -> bool:
        return 0 <= i < len(said) and said[i].text[:1].isdecimal()

    def joined(i: int) -> bool:
        return 0 <= i < len(said) and said[i].text in _RANGE

    first, last = mention.first, mention.last
    if not number(first):
        return False
    return any(joined(last + k) and number(last + k + 1) for k in (0, 1)) or (
        joined(first - 1) and (number(first - 2) or number(first - 3))
    )


def _negated(said: Sequence[Word], mention: Mention, before: tuple[Mention, bool] | None) -> bool:
    clause, start = said[mention.first].clause, 0
    if before is not None:
        start = before[0].last
        between = [word.text for word in said[start : mention.first]]
        led = [word.text for word in said[: before[0].first] if word.text not in ARTICLES]
        pair = led[-1:] in (["between"], ["both"])
        joining = {"or", "nor", *(["and"] if pair else [])}
        if before[1] and not joining.isdisjoint(between) and joining.union(ARTICLES).issuperset(between):
            return True
    ahead = [word.text for word in said[start : mention.first] if word.clause == clause and word.text not in ARTICLES]
    return (
        any(_NOT.fullmatch(word) for word in ahead)
        or any(tuple(ahead[-len(words) :]) == words for words in _BEFORE)
        or _negated_in_chinese(ahead)
    )


def _negated_in_chinese(ahead: Sequence[str]) -> bool:
    for word in reversed(ahead):
        if word not in _PASSED:
            return word in _NOT_CHINESE
    return False
