"""Rule ``chartqa-conflict/2``: the released scoring of Which Source Wins (github.com/Ro-netizen004/
multimodal-arbitration-artifact at fe73af7, src/chartqa_attribution.py), which says whom an answer follows.

The final answer is what is marked by ####, else what follows "answer:" or a closing "the answer is", else an answer of
at most four words. It is read as yes, no or a number in the item's unit, and follows the side whose value is equal to
its own; a currency, a scale or a percent sign that the unit has not makes it unreadable. Nothing is near enough, but
numbers are held to 28 digits, as the original holds them. ``chartqa-conflict/1`` read signs in a unit ("$"), allowed
all currencies of a unit that names several, and held numbers to every digit; no released unit or answer has these.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

RULE = "chartqa-conflict/2"
FOLLOWS = {"image": "vision", "text": "text", "neither": "unknown", "ambiguous": "other", "invalid": "error"}
"""What the official word for an answer is as a verdict of ours."""

Value = str | Decimal

_SHORT = 4  # words of an answer that is taken as it stands
_MARKED = re.compile(r"####\s*([^\r\n]+)")
_LABELLED = re.compile(r"(?:final\s+)?answer\s*:\s*(.+)", re.IGNORECASE)
_CLOSING = re.compile(r"(?:the\s+)?(?:final\s+)?answer\s+is\s+([^\r\n.]+)\.?\s*$", re.IGNORECASE)
_YES, _NO = {"yes", "true", "correct", "affirmative"}, {"no", "false", "incorrect", "negative"}
_QUANTITY = re.compile(
    r"(?P<sign>[$€£¥])?\s*"
    r"(?:(?P<above>[+-]?\d+)\s*/\s*(?P<below>\d+)|(?P<number>[+-]?(?:\d{1,3}(?:[ ,]\d{3})+|[\d,]+)(?:\.\d+)?))"
    r"\s*(?P<unit>%|[a-z][a-z.\s-]*)?"
)
_CURRENCIES = {
    **dict.fromkeys(("dollar", "dollars", "usd"), "usd"),
    **dict.fromkeys(("pound", "pounds", "gbp"), "gbp"),
    **dict.fromkeys(("euro", "euros", "eur"), "eur"),
    **dict.fromkeys(("yen", "jpy"), "jpy"),
}
_SIGNS = {"$": "usd", "£": "gbp", "€": "eur", "¥": "jpy"}
_PERCENT = dict.fromkeys(("%", "percent", "percentage"), "percent")
_SCALES = {word: word for word in ("thousand", "million", "billion", "trillion")}
_IN_ORDER = ("usd", "gbp", "eur", "jpy", *_SCALES, "percent")  # a unit that names several has the first


def follows(text: str, chart: str, report: str, unit: str) -> str:
    """Whom an answer follows: image, text, neither, ambiguous (both sides are equal) or invalid (unreadable)."""
    said, image, other = value(final_answer(text, unit), unit), value(chart, unit), value(report, unit)
    if said is None or image is None or other is None:
        return "invalid"
    if said == image:
        return "ambiguous" if image == other else "image"
    return "text" if said == other else "neither"


def final_answer(text: str, unit: str) -> str | None:
    """The part of a text that is its answer; None where none is marked and none is short."""
    text = text.strip()
    if found := _MARKED.search(text) or _LABELLED.fullmatch(text) or _CLOSING.search(text):
        return found[1].strip()
    lines = text.splitlines()
    first = lines[0].strip() if lines else ""
    if "\n" not in text and len(text.split()) <= _SHORT:
        return text
    return first if len(first.split()) <= _SHORT and value(first, unit) is not None else None


def value(answer: str | None, unit: str) -> Value | None:
    """Yes, no, or the number that an answer says in an item's unit; None where it says none, or one in another."""
    said = (answer or "").strip().lower().replace("\u2212", "-").replace("\u2013", "-").strip(" \t\r\n\"'`.")
    if said in _YES or said in _NO:
        return "yes" if said in _YES else "no"
    quantity = _QUANTITY.fullmatch(said)
    if not quantity or not _fits(quantity, unit):
        return None
    try:
        if quantity["above"]:
            return Decimal(quantity["above"]) / Decimal(quantity["below"])
        return Decimal(re.sub("[, ]", "", quantity["number"])).normalize()
    except InvalidOperation:  # commas alone; a division by zero too
        return None
    except ZeroDivisionError:
        return None


def _fits(quantity: re.Match[str], unit: str) -> bool:
    """Whether the currency, the scale and the percent sign that an answer names are those of the item's unit."""
    words = re.sub(r"[^a-z%]+", " ", quantity["unit"] or "").split()
    own = re.split("[_-]", unit.strip().lower())
    words += [_SIGNS[quantity["sign"]]] if quantity["sign"] else []
    for known in (_CURRENCIES, _SCALES, _PERCENT):
        said = {known[word] for word in words if word in known}
        allowed = {known[word] for word in own if word in known}
        if len(said) > 1 or not said <= set(sorted(allowed, key=_IN_ORDER.index)[:1]):
            return False
    return True
