"""Scores on some of the samples: those of some tasks, or those that all arms of a column answered, where they did not
answer the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NoReturn

import numpy as np

from eval_suite.compare.load import Arm, Column, Score
from factory.errors import UserError, did_you_mean, quoted
from factory.statistics.intervals import bootstrap_mean, wilson

Scored = Sequence[tuple[Arm, Score]]


def align(arms: Sequence[Arm], common: bool) -> list[str]:
    """Leave columns alone whose arms answered the same samples; score the others anew on the common ones, if
    ``common``. Returns what was left out: metrics that are no mean over samples (F1, CIDEr) cannot be made again from
    a part.

    Raises ``UserError`` where samples differ and ``common`` is false, where there are no common ones, and where samples
    of one name are not the same sample.
    """
    notes = []
    for column in dict.fromkeys(column for arm in arms for column in arm.scores):
        scored = [(arm, arm.scores[column]) for arm in arms if column in arm.scores]
        _refuse_other_content(column, scored)
        if len({frozenset(score.asked) for _, score in scored}) == 1:
            continue
        again = all(is_mean(score) for _, score in scored)
        if not common:
            alike = "run them alike (--limit, data and seeds; what a run left out stands in its results.json)"
            way = f", or add --common{'' if again else f', which leaves {column[1]} out: it is no mean over samples'}"
            _refuse(column, scored, alike + way)
        if again and any(score.main for _, score in scored):
            shared = set.intersection(*({sample for part in score.parts for sample in part} for _, score in scored))
            if not shared:
                _refuse(column, scored, "there is nothing to compare")
            for _, score in scored:
                _restrict(score, shared)
                score.common = True
            continue
        if any(score.main for _, score in scored):
            notes.append(
                f"{column[0]}: {column[1]} is no mean over samples, so that it cannot be made again on those that all"
                " arms share; it is left out."
            )
        for arm, _ in scored:
            del arm.scores[column]
    if not any(arm.scores for arm in arms):
        raise UserError(f"nothing is left to compare; run them alike. {' '.join(notes)}".strip())
    return notes


def of_tasks(arms: Sequence[Arm], tasks: Sequence[str]) -> list[str]:
    """Score every arm on the samples of some tasks alone. Returns what has to be known of it, and what is left out: a
    metric that is no mean over samples, those beside a main one, which are kept of all samples together, and what has
    no sample of the tasks. Raises ``UserError`` for a task that no sample is of."""
    known = {task for arm in arms for score in arm.scores.values() for own in score.tasks.values() for task in own}
    if unknown := [task for task in tasks if task not in known]:
        hint = did_you_mean(unknown[0], known)
        raise UserError(
            f"--task {unknown[0]}: no sample is of it.{hint} There are {', '.join(sorted(known)) or 'none'}"
        )
    no_mean: dict[str, None] = {}
    elsewhere: dict[str, None] = {}
    beside = False
    for arm in arms:
        for column, score in list(arm.scores.items()):
            kept = {sample for sample, own in score.tasks.items() if not set(own).isdisjoint(tasks)}
            if kept and is_mean(score):
                _restrict(score, kept)
                continue
            del arm.scores[column]
            if not kept:
                elsewhere[column[0]] = None
            elif score.main:
                no_mean[f"{column[0]} {column[1]}"] = None
            else:
                beside = True
    if not any(arm.scores for arm in arms):
        raise UserError(f"--task {tasks[0]}: no score of it is a mean over samples; there is nothing to compare")
    told = [f"Of the samples of {', '.join(tasks)} alone."]
    told += [f"Left out, for no sample is of that: {', '.join(elsewhere)}."] if elsewhere else []
    told += [f"Left out, for they are no means over samples: {', '.join(no_mean)}."] if no_mean else []
    told += ["Metrics beside the main ones are kept of all samples together, and left out here."] if beside else []
    return [" ".join(told)]


def is_mean(score: Score) -> bool:
    """Whether a score is the mean of its samples' values, so that it can be made again on some of them."""
    return len(score.parts) == len(score.values) and all(
        part and np.isclose(value, np.mean(list(part.values())))
        for value, part in zip(score.values, score.parts, strict=True)
    )


def _refuse_other_content(column: Column, scored: Scored) -> None:
    """Refuse samples that bear one name and are not one: a file was mended, or another was meant."""
    known: dict[str, tuple[Arm, str]] = {}
    for arm, score in scored:
        for sample, item in score.items.items():
            other, theirs = known.setdefault(sample, (arm, item))
            if theirs != item:
                raise UserError(
                    f"{column[0]}: sample {quoted(sample)} of {arm.group} is not that of {other.group}: another"
                    " question, right answer or picture; score both on the same files"
                )


def _restrict(score: Score, samples: AbstractSet[str]) -> None:
    """Score some samples alone."""
    parts = [
        kept for part in score.parts if (kept := {sample: value for sample, value in part.items() if sample in samples})
    ]
    each = [np.array(list(part.values())) for part in parts]
    score.parts, score.asked, score.counts = (
        parts,
        [frozenset(part) for part in parts],
        [len(part) for part in parts],
    )
    score.values, score.intervals = [float(x.mean()) for x in each], [interval(x) for x in each]
    score.unread = [{sample: share for sample, share in own.items() if sample in samples} for own in score.unread]
    score.failures = [float(np.mean(list(own.values()))) if own else None for own in score.unread]


def interval(x: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean of per-sample values [n]: Wilson's of shares, the bootstrap's of others."""
    return wilson(float(x.sum()), len(x)) if np.isin(x, (0.0, 1.0)).all() else bootstrap_mean(x)


def _refuse(column: Column, scored: Scored, remedy: str) -> NoReturn:
    one, a = scored[0]
    other, b = next(((arm, s) for arm, s in scored if frozenset(s.asked) != frozenset(a.asked)), scored[-1])
    shared = len(frozenset().union(*a.parts) & frozenset().union(*b.parts))
    raise UserError(
        f"{column[0]} {column[1]}: {one.group}/{one.method} was scored on {sum(a.counts)} answers and"
        f" {other.group}/{other.method} on {sum(b.counts)}, with {shared} samples in common; scores on different"
        f" samples must not stand in one column: {remedy}"
    )
