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
    """The time of ``ours`` over that of ``peer``: geometric mean of the rounds' ratios, and its 95 % interval, over
    ``launches`` of processes where each way has one of its own, and else over the ``rounds``."""

    work: str
    peer: str
    versions: dict[str, str]
    setting: dict[str, Any]
    ratio: float
    low: float
    high: float
    rounds: int
    seconds: dict[str, float] = field(default_factory=dict)
    launches: int = 1

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


Seconds = Sequence[Sequence[float]]
"""Of each round in each launch of the processes."""


def paired(
    work: str, peer: str, versions: Mapping[str, str], setting: Mapping[str, Any], ours: Seconds, theirs: Seconds
) -> Pair:
    """The times of one round are a pair. With several launches each is one draw: two processes that do the same differ
    by some percent for as long as they live. Raises ValueError where there are not as many of one as of the other.
    """
    logs = np.log([[a / b for a, b in zip(*launch, strict=True)] for launch in zip(ours, theirs, strict=True)])
    low, high = np.exp(bootstrap_mean(logs.mean(1) if len(logs) > 1 else logs[0]))
    medians = {"ours": float(np.median(ours)), "peer": float(np.median(theirs))}
    centre = float(np.exp(logs.mean()))
    told = (dict(versions), dict(setting), centre, float(low), float(high), logs.shape[1], medians, len(logs))
    return Pair(work, peer, *told)
