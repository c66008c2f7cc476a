"""Runs of one recipe on several draws of its data, as one run on the samples of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from eval_suite.compare.load import Arm, Column, Score, mean_over_seeds
from eval_suite.compare.samples import interval, is_mean
from factory.errors import UserError

T = TypeVar("T")
NAME = "pooled"
ALL_SIDES = "wanted_side"


def pooled(arms: Sequence[Arm]) -> tuple[list[Arm], list[str]]:
    """Each method on the samples of all runs, toward each direction and, where there are several, toward all of them
    together; and what has to be known of it.

    A sample is told by its run, so that the same name in two runs is two samples; over seeds it counts once, with its
    mean; its answers toward several directions are resampled together. A metric that is no mean over samples is left
    out. Raises ``UserError`` where nothing is left, and for a direction that is called as all together are here.
    """
    runs = list(dict.fromkeys(arm.group for arm in arms))
    directions = list(dict.fromkeys(arm.direction for arm in arms if arm.direction))
    if len(runs) == 1:
        raise UserError("--pool: takes several runs, which are of other samples each")
    if ALL_SIDES in directions:
        raise UserError(f"--pool: a direction is called {ALL_SIDES}, as all of them together are called here")
    kinds = dict.fromkeys((arm.method, arm.direction) for arm in arms)
    left_out: dict[str, None] = {}
    found = [_as_one([a for a in arms if (a.method, a.direction) == kind], kind[1], left_out) for kind in kinds]
    if len(directions) > 1:
        methods = dict.fromkeys(arm.method for arm in arms if arm.direction)
        toward = [[a for a in arms if a.method == method and a.direction] for method in methods]
        found += [_as_one(own, ALL_SIDES, left_out) for own in toward]
    if not any(arm.scores for arm in found):
        raise UserError("--pool: no score of these runs is a mean over samples; there is nothing to pool")
    gone = f" Left out, as no mean over samples: {', '.join(left_out)}." if left_out else ""
    return found, [f"Pooled: the samples of {', '.join(runs)}.{gone}"]


def _as_one(own: Sequence[Arm], direction: str | None, left_out: dict[str, None]) -> Arm:
    """One arm of several toward a ``direction``; toward all sides its columns are those that have one."""
    first, several = own[0], direction == ALL_SIDES
    arm = Arm(NAME, first.method, direction, recipe=first.recipe, unsteered=first.unsteered)
    arm.parameters = first.parameters
    arm.seeds = list(dict.fromkeys(seed for each in own for seed in each.seeds))
    arm.strengths = [strength for each in own for strength in each.strengths]
    found = (column for each in own for column in each.scores if column[2] or not several)
    for column in dict.fromkeys((*c[:2], direction) if several else c for c in found):
        label, metric, toward = column
        parts = [
            _Part(each.group, f"{each.group}/{each.direction}" if several else each.group, score)
            for each in own
            if (score := each.scores.get((label, metric, each.direction if several else toward)))
        ]
        if all(is_mean(part.score) for part in parts):
            arm.scores[column] = _scored(column, parts)
        else:
            left_out[f"{label} {metric}"] = None
    return arm


class _Part(NamedTuple):
    """One run's score; its samples are told by ``name`` and hang together within ``run``."""

    run: str
    name: str
    score: Score

    def named(self, of: Mapping[str, T]) -> dict[str, T]:
        return {f"{self.name}/{sample}": value for sample, value in of.items()}


def _scored(column: Column, parts: Sequence[_Part]) -> Score:
    """One score of those of several runs."""
    first = parts[0].score
    samples = {key: value for part in parts for key, value in part.named(part.score.samples).items()}
    each = np.array(list(samples.values()))
    failures, weights = [part.score.failure_rate for part in parts], [len(part.score.samples) for part in parts]
    score = Score(column, first.protocol, first.scorer, first.main, [float(each.mean())], [interval(each)], [len(each)])
    unknown = None in failures
    score.failures = [None if unknown else float(np.average(np.array(failures, float), weights=weights))]
    score.parts, score.unread = [samples], [{}]
    score.asked = [frozenset(samples)]
    for part in parts:
        of = part.score
        score.unread[0] |= part.named(mean_over_seeds(of.unread))
        score.units |= part.named({s: f"{part.run}/{of.units.get(s, s)}" for s in of.samples})
        score.items |= part.named(of.items)
        score.tasks |= part.named(of.tasks)
    return score
