"""Number words as digits: "two hundred and five", "1.5 million", "三百零五", "3万". Ordinals are words."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: n for n, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_ENGLISH = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_GROUPS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_SCALES = _ENGLISH | {"千": 10**3} | _GROUPS
_HUNDRED = ("hundred", "百")
_DIGITS = {**{c: n for n, c in enumerate("零一二三四五六七八九")}, "〇": 0, "两": 2, "兩": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
CHINESE = (
    f"[{''.join(_DIGITS)}十]",
    f"[{''.join((*_DIGITS, *_UNITS, *_GROUPS))}]*",
)  # how a numeral begins and goes on

Part = tuple[int, Decimal]


def said_number(words: Sequence[str]) -> tuple[int, str] | None:
    """How many of the first ``words`` (lower case, a dash as "-") say one number, and that number in digits; None where
    they begin with none. Digits alone are no number word; before a scale they are ("1.5 million").
    """
    taken, total, below = 0, Decimal(0), 10**15
    while True:
        start = taken + (taken > 0 and _at(words, taken) == "and")
        n, value = _under_a_thousand(words[start:])
        end = start + n + (n > 0 and _at(words, start + n) == "-")
        scale = _SCALES.get(_at(words, end), 0)
        if 0 < scale < below and (n or (not taken and words[end] in _ENGLISH)):
            taken, total, below = end + 1, total + (value if n else 1) * scale, scale
            continue
        if n and not scale and (value or not taken):
            taken, total = start + n, total + value
        return (taken, f"{total.normalize():f}") if taken else None


def chinese_number(numeral: str) -> str:
    """三百零五 as 305, 十三 as 13, 一万二 as 12000; what has no unit digit by digit, what is no number as it is."""
    if not set(numeral) & {*_UNITS, *_GROUPS}:
        return "".join(str(_DIGITS[c]) for c in numeral)
    total = section = digit = 0
    unit = largest = 1
    for c in numeral:
        if c in _DIGITS:
            if digit:
                return numeral
            digit = _DIGITS[c]
            unit = unit if digit else 1  # 一百零五 is 105, 一百五 150
        elif c in _UNITS:
            section += (digit or c == "十") * _UNITS[c]
            digit, unit = 0, _UNITS[c]
        else:
            whole = section + digit
            total = (total + whole) * _GROUPS[c] if _GROUPS[c] > largest else total + whole * _GROUPS[c]
            section, digit, unit, largest = 0, 0, _GROUPS[c], max(largest, _GROUPS[c])
    return str(total + section + digit * max(1, unit // 10))


def _under_a_thousand(words: Sequence[str]) -> Part:
    n, value = _under_a_hundred(words)
    end = n + (n > 0 and _at(words, n) == "-")
    if _at(words, end) not in _HUNDRED or (not n and words[end] == "百"):
        return n, value
    n, value = end + 1, (value if n else Decimal(1)) * 100
    start = n + (_at(words, n) == "and")
    more, rest = _under_a_hundred(words[start:])
    if rest and _at(words, start + more) not in _HUNDRED:
        return start + more, value + rest
    return n, value


def _under_a_hundred(words: Sequence[str]) -> Part:
    first, second = _at(words, 0), _at(words, 1)
    if first[:1].isdecimal():
        return (1, Decimal(first)) if second in _HUNDRED or second in _SCALES else (0, Decimal(0))
    if first in _TENS:
        dash = second == "-"
        ones = _VALUES.get(_at(words, 1 + dash), 0)
        if 0 < ones < 10:
            return 2 + dash, Decimal(_VALUES[first] + ones)
    return (1, Decimal(_VALUES[first])) if first in _VALUES else (0, Decimal(0))


def _at(words: Sequence[str], i: int) -> str:
    return words[i] if i < len(words) else ""
