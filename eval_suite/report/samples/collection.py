"""Samples with every method's answers, as the sample page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Strength = float | str | None


@dataclass(frozen=True)
class Outcome:
    """What an answer may come to: its letter in strips, its name, and what it means."""

    letter: str
    name: str
    meaning: str


@dataclass(frozen=True)
class Vocabulary:
    """The outcomes of one sort of benchmark.

    A method flips a sample that it makes ``wanted`` and that the unsteered model does not answer so; it breaks one
    whose outcome it takes from among ``whole`` to among ``broken``. All three hold letters.
    """

    outcomes: tuple[Outcome, ...]
    wanted: str
    whole: str
    broken: str

    def letter(self, name: str) -> str:
        return next(outcome.letter for outcome in self.outcomes if outcome.name == name)

    def flips(self, before: str, after: str) -> bool:
        return before != self.wanted and after == self.wanted

    def breaks(self, before: str, after: str) -> bool:
        return before in self.whole and after in self.broken


CONFLICT = Vocabulary(
    (
        Outcome("F", "follow", "gives the answer of the side that is steered towards"),
        Outcome("C", "compete", "gives the other side's answer"),
        Outcome("D", "flags", "says that the two sources disagree"),
        Outcome("O", "other", "gives neither answer"),
        Outcome("E", "error", "is no usable answer"),
    ),
    wanted="F",
    whole="FCDO",
    broken="E",
)
QUESTION = Vocabulary(
    (
        Outcome("R", "right", "is right"),
        Outcome("P", "partly right", "gets a part of the score, which stands beside it"),
        Outcome("W", "wrong", "is wrong"),
        Outcome("U", "unread", "holds no answer that the rule can read"),
        Outcome("N", "not scored", "has no score of its own"),
    ),
    wanted="R",
    whole="R",
    broken="PWU",
)


@dataclass(frozen=True)
class Arm:
    """One method toward one direction: the ``strength`` it is reported at among all its ``strengths``, and which arm
    is the unsteered model's beside it.
    """

    method: str
    direction: str | None
    strength: Strength = None
    strengths: tuple[Strength, ...] = (None,)
    variant: str = ""
    base: int | None = None


@dataclass(frozen=True)
class Answer:
    """One method's answer at one strength: an outcome's letter, the text, its score where that says more, and a
    ``note`` on how it came about.
    """

    letter: str
    text: str
    value: float | None = None
    note: str = ""


@dataclass
class Entry:
    """One sample. ``facts`` are titled texts beside the question, ``pictures`` small JPEGs, ``answers`` by arm and
    strength, ``numbers`` what diagnostics measured: metric, prompt, value.
    """

    id: str
    task: str
    question: str
    facts: Sequence[tuple[str, str]] = ()
    pictures: Sequence[bytes] = ()
    answers: dict[tuple[int, Strength], Answer] = field(default_factory=dict)
    numbers: Sequence[tuple[str, str, float]] = ()


@dataclass(frozen=True)
class Collection:
    """The samples of one benchmark: ``entries`` are all ``total`` of them, or some, evenly spread."""

    title: str
    vocabulary: Vocabulary
    arms: Sequence[Arm]
    entries: Sequence[Entry]
    total: int

    def outcomes(self, entry: Entry) -> str:
        """Of each arm the letter at its reported strength; a dot where it gave no answer."""
        return "".join(self._letter(entry, i, arm.strength) for i, arm in enumerate(self.arms))

    def events(self, entry: Entry) -> str:
        """Of each arm a hexadecimal digit: 1 flips, 2 breaks, at the reported strength; 4 flips, 8 breaks, at any."""
        return "".join(f"{self._event(entry, i, arm):x}" for i, arm in enumerate(self.arms))

    def _letter(self, entry: Entry, arm: int, strength: Strength) -> str:
        answer = entry.answers.get((arm, strength))
        return answer.letter if answer else "."

    def _event(self, entry: Entry, index: int, arm: Arm) -> int:
        if arm.base is None or arm.base == index:
            return 0
        before = self._letter(entry, arm.base, self.arms[arm.base].strength)
        if before == ".":
            return 0
        own = self._letter(entry, index, arm.strength)
        found = {self._letter(entry, index, strength) for strength in arm.strengths}
        said = self.vocabulary
        return (
            said.flips(before, own)
            + 2 * said.breaks(before, own)
            + 4 * any(said.flips(before, letter) for letter in found)
            + 8 * any(said.breaks(before, letter) for letter in found)
        )


def arms_of(answers: Sequence[Mapping], unsteered: str) -> list[Arm]:
    """The arms of some predictions, in the order in which they first stand there, direction by direction.

    A prediction names its ``method``, ``direction`` and ``strength``; ``chosen`` tells the reported strength apart.
    """
    found: dict[tuple[str | None, str], dict[Strength, bool]] = {}
    variants: dict[tuple[str | None, str], str] = {}
    for p in answers:
        key = p.get("direction"), p["method"]
        strengths = found.setdefault(key, {})
        strength = p.get("strength")
        strengths[strength] = strengths.get(strength, False) or bool(p.get("chosen", True))
        variants.setdefault(key, p.get("variant") or "")
    directions = list(dict.fromkeys(direction for direction, _ in found))
    keys = sorted(found, key=lambda key: directions.index(key[0]))
    base = {direction: i for i, (direction, method) in enumerate(keys) if method == unsteered}
    anywhere = base.get(None)
    return [
        Arm(
            method,
            direction,
            next((s for s, chosen in found[direction, method].items() if chosen), None),
            tuple(sorted(found[direction, method], key=_in_order)),
            variants[direction, method],
            base.get(direction, anywhere),
        )
        for direction, method in keys
    ]


def _in_order(strength: Strength) -> tuple[bool, float, str]:
    return (False, float(strength), "") if isinstance(strength, int | float) else (True, 0.0, str(strength))
