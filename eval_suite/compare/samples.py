"""Whether the arms of a column answered the same samples; if not, their scores on those that all of them answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from eval_suite.compare.load import Arm, Column, Score
from factory.errors import UserError, quoted
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
        again = all(_is_mean(score) for _, score in scored)
        if not common:
            alike = "run them alike (--limit, data and seeds; what a run left out stands in its results.json)"
            way = f", or add --common{'' if again else f', which leaves {column[1]} out: it is no mean over samples'}"
            _refuse(column, scored, alike + way)
        if again and any(score.main for _, score in scored):
            _restrict(column, scored)
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


def _is_mean(score: Score) -> bool:
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


def _restrict(column: Column, scored: Scored) -> None:
    shared = set.intersection(*({sample for part in score.parts for sample in part} for _, score in scored))
    if not shared:
        _refuse(column, scored, "there is nothing to compare")
    for _, score in scored:
        parts = [
            kept
            for part in score.parts
            if (kept := {sample: value for sample, value in part.items() if sample in shared})
        ]
        each = [np.array(list(part.values())) for part in parts]
        score.parts, score.asked, score.counts, score.common = (
            parts,
            [frozenset(part) for part in parts],
            [len(part) for part in parts],
            True,
        )
        score.values, score.intervals = [float(x.mean()) for x in each], [_interval(x) for x in each]


def _interval(x: np.ndarray) -> tuple[float, float]:
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
