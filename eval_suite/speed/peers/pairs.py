"""Two ways to do the same work, timed in turn, and the ratio of their times with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factory.statistics.intervals import bootstrap_mean

FAULT = 1.02  # where the whole interval lies above it, ours is slower


@dataclass(frozen=True)
class Pair:
    """The time of ``ours`` over that of ``peer``: geometric mean of the rounds' ratios, and its 95 % interval."""

    work: str
    peer: str
    versions: dict[str, str]
    setting: dict[str, Any]
    ratio: float
    low: float
    high: float
    rounds: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def slower(self) -> bool:
        return self.low > FAULT


def in_turn(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each of ``runs`` returns, its seconds, in each of ``rounds``, after one that warms up. Every other round
    goes backwards, so that a machine that slows down slows all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            taken = runs[name]()
            if turn:
                seconds[name].append(taken)
    return seconds


def paired(
    work: str,
    peer: str,
    versions: Mapping[str, str],
    setting: Mapping[str, Any],
    ours: Sequence[float],
    theirs: Sequence[float],
) -> Pair:
    """The times of one round are a pair. Raises ValueError where there are not as many of one as of the other."""
    ratios = np.log([a / b for a, b in zip(ours, theirs, strict=True)])
    low, high = np.exp(bootstrap_mean(ratios))
    medians = {"ours": float(np.median(ours)), "peer": float(np.median(theirs))}
    centre = float(np.exp(ratios.mean()))
    return Pair(work, peer, dict(versions), dict(setting), centre, float(low), float(high), len(ratios), medians)
