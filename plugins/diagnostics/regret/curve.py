"""How far apart regret and its absence lie, by layer, and whether the curve is M-shaped.

The paper chooses its layer by S-CDI, whose formula is in no public source, and reports an M-shaped pattern. The scatter
ratio here is ours, no S-CDI: the squared distance of the two classes' means over their scatter,

    D(l) = log |m_r - m_n|^2 - log(tr C_r + tr C_n)

higher where they are further apart. M at layers i < j < k: the least of D(i) - D(first), D(i) - D(j), D(k) - D(j) and
D(k) - D(last). The layers are found on one half of the items and M is taken on the other, so that looking for a shape
does not make one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from factory.statistics.association import Interval, interval, spearman

from .probe import folds, resampled


def scatter_ratio(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """D [draws, layers] of states [n, layers, d] and labels [n]; ``weights`` [draws, n] how often each row counts."""
    w = torch.ones(1, len(y)) if weights is None else weights.float()
    out = []
    for z in x.float().unbind(1):
        z = z - z.mean(0)
        mean, trace = [], []
        for label in (y, ~y):
            c = w * label
            total = c.sum(1, keepdim=True).clamp_min(1e-30)
            mean.append(c @ z / total)
            trace.append((c @ z.square().sum(1, keepdim=True) / total)[:, 0] - mean[-1].square().sum(1))
        apart = (mean[0] - mean[1]).square().sum(1)
        out.append(apart.clamp_min(1e-30).log() - (trace[0] + trace[1]).clamp_min(1e-30).log())
    return torch.stack(out, 1)


def m_depth(curve: np.ndarray, at: tuple[int, int, int]) -> float:
    """M of a curve [layers] with its peaks and valley at layers i < j < k."""
    i, j, k = (curve[layer] for layer in at)
    return float(min(i - curve[0], i - j, k - j, k - curve[-1]))


def best_m(curve: np.ndarray) -> tuple[int, int, int] | None:
    """The layers at which M is largest; None where a curve has too few."""
    inner = combinations(range(1, len(curve) - 1), 3)
    return max(inner, key=lambda at: m_depth(curve, at), default=None)


@dataclass(frozen=True)
class Shape:
    """D [layers] with intervals, and its ``floor`` [layers] where labels are shuffled. ``m``: M on the half where it
    was not looked for; ``rises``: the rank correlation of D with the layer. Intervals are over resampled items.
    """

    curve: np.ndarray
    between: list[Interval | None]
    floor: np.ndarray
    m: float
    m_between: Interval | None
    layers: tuple[int, int, int] | None
    rises: float
    rises_between: Interval | None


def shape(x: Tensor, y: Tensor, items: Sequence[str], draws: int, seed: int) -> Shape:
    """The curve of states [n, layers, d]."""
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy(resampled(items, draws, seed))
    whole = scatter_ratio(x, y, weights).numpy()
    half = folds(items, 2, seed).bool()
    halves = [scatter_ratio(x[part], y[part], weights[:, part]).numpy() for part in (half, ~half)]
    found = [best_m(curve) for curve in whole]
    m = np.array([_crossed(a, b) for a, b in zip(*halves, strict=True)])
    shuffled = [scatter_ratio(x, y[torch.from_numpy(rng.permutation(len(y)))])[0].numpy() for _ in range(20)]
    rises = np.array([spearman(np.arange(len(curve)), curve) for curve in whole])
    return Shape(
        whole[0],
        [interval(column) for column in whole[1:].T],
        np.mean(shuffled, 0),
        float(m[0]),
        interval(m[1:]),
        found[0],
        float(rises[0]),
        interval(rises[1:]),
    )


def _crossed(a: np.ndarray, b: np.ndarray) -> float:
    """M found on either half and taken on the other, the mean of both."""
    found = [(best_m(seen), other) for seen, other in ((a, b), (b, a))]
    return float(np.mean([m_depth(other, at) if at else np.nan for at, other in found]))
