"""What a scorer makes of one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reading:
    """One answer as a rule reads it.

    ``parsed`` is the answer found in the text (None where none was), ``sums`` what it adds to the counts that the
    metrics are made of, ``value`` its own score in [0, 1] for paired tests (None where only a group of answers has
    one), ``failed`` whether nothing could be read, ``guessed`` whether the rule then drew an answer at random,
    ``again`` whether the next start should ask for it once more (a judge that said nothing of use).
    """

    parsed: str | None
    sums: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    failed: bool = False
    guessed: bool = False
    again: bool = False


def right_or_wrong(parsed: str | None, right: bool, guessed: bool = False) -> Reading:
    """The reading of an answer that is either right or wrong: adds to ``right`` and ``n``."""
    return Reading(parsed, {"right": float(right), "n": 1.0}, float(right), parsed is None or guessed, guessed)
