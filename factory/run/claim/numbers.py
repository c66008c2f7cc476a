"""The numbers of a claim: a family against the null, sample by sample, and what measured shares tell of the null's
flips and breaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from factory.run.claim.draw import Scored
from factory.run.claim.entrants import FAMILIES, NONE, NULL, OUTCOMES
from factory.run.claim.measured import Shares
from factory.statistics.association import Auroc, clustered_auroc
from factory.statistics.intervals import bootstrap_mean
from factory.statistics.power import detectable
from factory.statistics.significance import holm, sign_flip_p

LEVEL = 0.05
FEWEST = 5  # of either kind, below which no AUROC is told
EVENTS = ("flips", "breaks")
ERROR = OUTCOMES.index("error")
Looked = Mapping[tuple[int, str], tuple[tuple[str, ...], Shares]]
"""By draw and scoring the ids of the samples looked at and their shares."""


@dataclass(frozen=True)
class Against:
    """A family minus the null on the same test samples, in shares: ``difference`` in following, its 95 % interval and
    p, ``adjusted`` for all that were tested with it, what so many samples would have shown with 80 % power
    (``detectable``), and the difference in ``error`` with its interval. Of several seeds each sample counts with its
    mean."""

    family: str
    direction: str
    scoring: str
    about: Mapping[str, Any]
    n: int
    null: float
    difference: float
    low: float
    high: float
    p: float
    detectable: float
    error: float
    error_low: float
    error_high: float
    adjusted: float = 1.0

    @property
    def wins(self) -> bool:
        """Whether it follows more, and errs no more as far as can be told."""
        return self.low > 0 and self.adjusted < LEVEL and self.error_low <= 0

    @property
    def loses(self) -> bool:
        return self.high < 0 and self.adjusted < LEVEL

    @property
    def verdict(self) -> str:
        return "better" if self.wins else "worse" if self.loses else "undecided"


def against(tests: Sequence[Scored], direction: Any, family: str, **about: Any) -> Against:
    """A family against the null over all of some tests of one scoring, each sample of a draw once."""
    follow = _differences(tests, direction, family, 0)
    error = _differences(tests, direction, family, ERROR)
    null = np.concatenate([t.has(direction, NULL).numpy() for t in tests]).mean()
    low, high = bootstrap_mean(follow)
    error_low, error_high = bootstrap_mean(error)
    return Against(
        family,
        direction,
        tests[0].scoring,
        about,
        len(follow),
        float(null),
        float(follow.mean()),
        low,
        high,
        sign_flip_p(follow),
        detectable(follow),
        float(error.mean()),
        error_low,
        error_high,
    )


def _differences(tests: Sequence[Scored], direction: Any, family: str, outcome: int) -> np.ndarray:
    """Per sample of every draw, the mean over seeds of what the family has of an outcome less what the null has."""
    by_draw: dict[int, list[np.ndarray]] = {}
    for t in tests:
        own = t.has(direction, family, outcome) - t.has(direction, NULL, outcome)
        by_draw.setdefault(t.draw, []).append(own.numpy())
    return np.concatenate([np.mean(each, 0) for each in by_draw.values()])


def corrected(found: Sequence[Against]) -> list[Against]:
    """All with p adjusted for their number (Holm 1979)."""
    return [replace(a, adjusted=p) for a, p in zip(found, holm([a.p for a in found]), strict=True)]


def families(tests: Sequence[Scored]) -> list[str]:
    """What stands against the null in some tests."""
    there = {family for t in tests for _, family in t.outcomes}
    return [f for f in FAMILIES if f in there and f not in (NONE, NULL)]


def pooled(tests: Sequence[Scored]) -> list[Against]:
    """Every family against the null, over all draws and seeds of a scoring."""
    return corrected(
        [
            against([t for t in tests if t.scoring == scoring], d, family)
            for scoring in dict.fromkeys(t.scoring for t in tests)
            for d in _directions(tests)
            for family in families(tests)
        ]
    )


def single(tests: Sequence[Scored]) -> list[Against]:
    """The same of each draw, seed and planted effect by itself, with the choices made on dev."""
    return corrected(
        [
            against([t], d, family, draw=t.draw, seed=t.seed, effect=t.effect, **_choice(t, d, family))
            for t in tests
            for d in _directions([t])
            for family in families([t])
        ]
    )


def _choice(t: Scored, direction: Any, family: str) -> dict[str, Any]:
    own, null = t.choices[direction, family], t.choices[direction, NULL]
    return {
        "variant": own.variant,
        "strength": own.strength,
        "null_strength": null.strength,
        "dev": own.follow - null.follow,
    }


def _directions(tests: Iterable[Scored]) -> list[Any]:
    return list(dict.fromkeys(d for t in tests for d, _ in t.outcomes))


@dataclass(frozen=True)
class Telling:
    """How well a predictor tells an event (``flips``: the null turns a sample that the model itself does not answer
    toward the direction; ``breaks``: it spoils one that it does), over ``task`` or all; ``event`` of ``n`` rows."""

    predictor: str
    direction: str
    scoring: str
    event: str
    task: str
    n: int
    events: int
    auroc: Auroc
    adjusted: float | None = None


def tellings(tests: Sequence[Scored], looked: Looked) -> list[Telling]:
    """Every predictor for both events, pooled ("all") and by task; each of the two families of tests is corrected for
    its number."""
    found = [t for scoring in dict.fromkeys(t.scoring for t in tests) for t in _tellings(tests, looked, scoring)]
    return [t for pooled_ in (True, False) for t in _adjusted([t for t in found if (t.task == "all") == pooled_])]


def _adjusted(found: Sequence[Telling]) -> list[Telling]:
    tested = [t for t in found if t.auroc.p is not None]
    adjusted = dict(zip(map(id, tested), holm([t.auroc.p for t in tested if t.auroc.p is not None]), strict=True))
    return [replace(t, adjusted=adjusted.get(id(t))) for t in found]


def _tellings(tests: Sequence[Scored], looked: Looked, scoring: str) -> Iterator[Telling]:
    tests = [t for t in tests if t.scoring == scoring and (t.draw, scoring) in looked]
    if not tests:
        return
    names = list(dict.fromkeys(looked[tests[0].draw, scoring][1]))
    for name, direction in names:
        rows = [_rows(t, direction, *looked[t.draw, scoring], name) for t in tests]
        share, before, after, task, cluster = (np.concatenate(each) for each in zip(*rows, strict=True))
        for event in EVENTS:
            of = (before == (event == "breaks")) & np.isfinite(share)
            label = after != before
            for only in ("all", *dict.fromkeys(task)):
                at = of & ((task == only) if only != "all" else True)
                n, events = int(at.sum()), int(label[at].sum())
                if min(events, n - events) >= FEWEST:
                    told = clustered_auroc(share[at], label[at], cluster[at].tolist())
                    yield Telling(name, direction, scoring, event, str(only), n, events, told)


def _rows(t: Scored, direction: Any, ids: Sequence[str], shares: Shares, name: str) -> tuple[np.ndarray, ...]:
    """Share, whether it follows before and after, task and cluster of each sample looked at [n]."""
    place = {sample: i for i, sample in enumerate(t.samples)}
    at = [place[sample] for sample in ids]
    before, after = (t.has(direction, family).numpy()[at] == 1 for family in (NONE, NULL))
    tasks, clusters = np.array([t.tasks[i] for i in at]), np.array([f"{t.draw}/{sample}" for sample in ids])
    return shares[name, direction].numpy(), before, after, tasks, clusters
