"""Choosing on dev by successive halving (Karnin et al., ICML 2013; Jamieson and Talwalkar, AISTATS 2016).

All variants and strengths of a method are asked of a few dev samples, the better half of them of twice as many, and so
on; those that are left at the end are asked of all. Samples of a round are evenly spread and are among those of the
next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from factory.benchmark import Rows
from factory.data.sample import ConflictSample
from factory.run.methods.cells import Strengths
from factory.run.methods.choose import ranked
from factory.steer.base import Direction

FEWEST = 16  # samples of a first round
Candidate = tuple[str, float]
"""A variant and a strength."""
Candidates = Mapping[tuple[str, Direction], Sequence[Candidate]]
"""What is chosen among, by method and direction."""
T = TypeVar("T")


def halvings(arms: int, samples: int) -> int:
    """How often so many arms are halved: until two are left, or as often as the first round still has samples."""
    return max(0, min(math.ceil(math.log2(arms)) - 1, int(math.log2(max(1, samples / FEWEST)))))


def rounds(first: int, samples: Sequence[T]) -> Iterator[tuple[int, list[T]]]:
    """Rounds from ``first`` down to 0, each with the samples that are new in it."""
    for left in range(first, -1, -1):
        yield left, [s for i, s in enumerate(samples) if i % 2**left == 0 and (left == first or i % 2 ** (left + 1))]


def survivors(arms: int, left: int, times: int) -> int:
    """Of so many arms that are halved so many ``times``, those that are asked when ``left`` halvings are to come."""
    for _ in range(max(0, times - left)):
        arms = (arms + 1) // 2
    return arms


def halve(
    arms: Candidates,
    samples: Sequence[ConflictSample],
    ask: Callable[[int, list[ConflictSample], Strengths], Rows],
    budget: float,
    unsteered: str,
) -> Rows:
    """The rows of all that was asked; ``ask`` gives those of some samples in a round (by how many are to come), of
    methods without a strength too. A round's better half is what ``choose`` would prefer, seen on all samples so far.
    """
    alive = {key: list(own) for key, own in arms.items()}
    times = {key: halvings(len(own), len(samples)) for key, own in arms.items()}
    rows: Rows = []

    def at(label: str, direction: Direction, variant: str) -> list[float]:
        return [strength for name, strength in alive[label, direction] if name == variant]

    for left, new in rounds(max(times.values(), default=0), samples):
        rows += ask(left, new, at)
        for key, found in ranked(rows, budget, unsteered).items() if left else ():
            still = [c for c in found if (c.variant, c.strength) in alive[key]]
            best = {(c.variant, c.strength) for c in still[: survivors(len(arms[key]), left - 1, times[key])]}
            alive[key] = [arm for arm in alive[key] if arm in best]
    return rows


def asked_of_all(rows: Rows, samples: int) -> Rows:
    """The rows of the cells that hold all ``samples``."""
    cell = lambda r: (r["method"], r["direction"], r["variant"], r["strength"])
    counts: dict[tuple, int] = {}
    for r in rows:
        counts[cell(r)] = counts.get(cell(r), 0) + 1
    return [r for r in rows if counts[cell(r)] == samples]


def pairs_asked(arms: int, samples: int, most: int | None = None) -> int:
    """How many (sample, arm) pairs of one method toward one direction are asked, a round's arms counted as at ``most``
    so many."""
    times = halvings(arms, samples)
    return sum(
        len(new) * min(survivors(arms, left, times), most or arms) for left, new in rounds(times, range(samples))
    )
