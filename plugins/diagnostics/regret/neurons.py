"""Units of regret (2506.15617, sec. 3.3): RDS (eq. 1), groups (eq. 2), GIC (eq. 3).

    RDS_k = mean(Zr_k) / (mean(Zr_k) + mean(Zn_k) + 1e-8)
    RegretD: RDS > mu + tau sigma;   NonRegretD: RDS < mu - tau sigma;   DualD: the rest
    GIC = Acc(Z - S_1) / Acc(Z);   of several groups  Acc(Z - S_1 u S_2) / mean_i Acc(Z - S_i)

Acc is a probe's, of states in which a group's units have another value: the paper's -1, 0, or the units' mean. The
released RDS is a ratio of signed means, which has no bound where they cancel; ``scaled`` (ours) first takes each unit
to [0, 1] over what was trained on. Ours too: random groups of equal size, and accuracy of both classes weighed alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .probe import Fit, balanced_accuracy

GROUPS = ("RegretD", "NonRegretD", "DualD")
SETS: tuple[tuple[int, ...], ...] = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
Value = Literal["0", "mean", "-1"]
VALUES: tuple[Value, ...] = ("0", "mean", "-1")
EPS = 1e-8


def rds(regret: Tensor, other: Tensor, scaled: bool) -> Tensor:
    """Eq. 1 [units] of states [n_r, units] and [n_n, units]."""
    if scaled:
        both = torch.cat([regret, other])
        low, high = both.amin(0), both.amax(0)
        regret, other = ((z - low) / (high - low).clamp_min(EPS) for z in (regret, other))
    r, n = regret.double().mean(0), other.double().mean(0)
    return r / (r + n + EPS)


def groups(scores: Tensor, tau: float) -> Tensor:
    """Eq. 2: the group [units] of each unit, its number in ``GROUPS``."""
    mu, sigma = scores.mean(), scores.std(unbiased=False)
    return torch.where(scores > mu + tau * sigma, 0, torch.where(scores < mu - tau * sigma, 1, 2))


def values_of(value: Value, states: Tensor) -> Tensor:
    """What silenced units are [units]; the mean is that of ``states`` [n, units]."""
    return states.mean(0) if value == "mean" else torch.full_like(states[0], float(value))


def gic(combined: float, alone: Sequence[float], whole: float) -> float:
    """Eq. 3 of accuracies: with the union silenced, with each group alone, with none."""
    return combined / whole if len(alone) == 1 else combined / float(np.mean(alone))


@dataclass(frozen=True)
class Impact:
    """GIC of a set of groups at one tau and value, ``size`` units on average over folds; ``random`` [draws]: the same
    of random sets of equal sizes.
    """

    tau: float
    value: Value
    names: tuple[str, ...]
    size: float
    accuracy: float
    gic: float
    random: np.ndarray


def impacts(
    x: Tensor, y: Tensor, fold: Tensor, fit: Fit, taus: Sequence[float], draws: int, scaled: bool, seed: int
) -> Iterator[Impact]:
    """GIC of every group and pair of groups. Probe, groups and means come from the other folds than a row's own."""
    label = y.numpy()
    parts = []
    for k in fold.unique().tolist():
        seen, own = fold != k, fold == k
        if bool(y[seen].any()) and not bool(y[seen].all()):
            parts.append((own, fit(x[seen], y[seen]), x[seen], rds(x[seen & y], x[seen & ~y], scaled)))
    counted = torch.stack([own for own, *_ in parts]).any(0).numpy()
    accuracy = lambda score: balanced_accuracy(score[counted], label[counted])
    whole = np.full(len(x), np.nan)
    for own, score, _, _ in parts:
        whole[own.numpy()] = score(x[own]).numpy()
    base, rng = accuracy(whole), torch.Generator().manual_seed(seed)
    for tau in taus:
        found = [groups(scores, tau) for *_, scores in parts]
        shuffled = [[g[torch.randperm(len(g), generator=rng)] for g in found] for _ in range(draws)]
        for value in VALUES:

            def of(assigned: Sequence[Tensor], value: Value = value) -> dict[tuple[int, ...], float]:
                out = {}
                for some in SETS:
                    scores = np.full(len(x), np.nan)
                    for (own, score, seen, _), group in zip(parts, assigned, strict=True):
                        off = torch.isin(group, torch.tensor(some))
                        scores[own.numpy()] = score(torch.where(off, values_of(value, seen), x[own])).numpy()
                    out[some] = accuracy(scores)
                return out

            real, random = of(found), [of(each) for each in shuffled]
            for some in SETS:
                size = float(np.mean([torch.isin(g, torch.tensor(some)).sum() for g in found]))
                impact = lambda acc, some=some: gic(acc[some], [acc[i,] for i in some], base)
                names = tuple(GROUPS[i] for i in some)
                yield Impact(
                    tau, value, names, size, real[some], impact(real), np.array([impact(each) for each in random])
                )
