"""Probes that tell regret from a state, held out by item; AUROC and accuracy with intervals over items.

The paper's probe is an MLP d -> 2048 -> 1024 -> 512 -> 2 (ReLU, Adam, 1e-4, weight decay .01, 100 epochs of batches of
256, not seeded; one split 70/30). Ours: seeded, both classes weighed alike, every item held out once in ``folds``; and
a linear probe, which is the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factory.statistics.association import Interval, bootstrap, interval

Score = Callable[[Tensor], Tensor]
"""Log-odds [n] of regret of states [n, d]."""
Fit = Callable[[Tensor, Tensor], Score]
DRAWS = 500


def class_weights(y: Tensor) -> Tensor:
    """Weights [n] that sum to 1, each class to one half."""
    return torch.where(y, 0.5 / y.sum().clamp_min(1), 0.5 / (~y).sum().clamp_min(1))


def fit_linear(x: Tensor, y: Tensor, ridge: float) -> Score:
    """Logistic regression on standardised states: min_w,b sum_i c_i softplus(-y_i (w x_i + b)) + ridge |w|^2 / 2."""
    mean, spread = x.double().mean(0), x.double().std(0, unbiased=False).clamp_min(1e-8)
    z, c = (x.double() - mean) / spread, class_weights(y).double()
    sign = y.double() * 2 - 1
    w = torch.zeros(z.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        with torch.enable_grad():
            value = (c * F.softplus(-sign * (z @ w[:-1] + w[-1]))).sum() + ridge * w[:-1].square().sum() / 2
            value.backward()
        return value

    optimiser.step(loss)
    w = w.detach()
    return lambda x: ((x.double() - mean) / spread) @ w[:-1] + w[-1]


@dataclass(frozen=True)
class Mlp:
    """The paper's probe; ``hidden`` widths, and how it is trained."""

    hidden: tuple[int, ...] = (2048, 1024, 512)
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    epochs: int = 100
    batch_size: int = 256
    seed: int = 0

    def fit(self, x: Tensor, y: Tensor) -> Score:
        mean, spread = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-8)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            widths = (x.shape[1], *self.hidden)
            inner = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
            net = nn.Sequential(*inner, nn.Linear(widths[-1], 2))
            optimiser = torch.optim.Adam(net.parameters(), self.learning_rate, weight_decay=self.weight_decay)
            z, c = (x - mean) / spread, class_weights(y) * len(y)
            for _ in range(self.epochs):
                for some in torch.randperm(len(z)).split(self.batch_size):
                    optimiser.zero_grad()
                    loss = F.cross_entropy(net(z[some]), y[some].long(), reduction="none")
                    (c[some] * loss).mean().backward()
                    optimiser.step()

        @torch.no_grad()
        def score(x: Tensor) -> Tensor:
            out = net((x - mean) / spread)
            return (out[:, 1] - out[:, 0]).double()

        return score


def folds(items: Sequence[str], k: int, seed: int) -> Tensor:
    """The fold [n] in which each row is held out, in turn over the shuffled items: all rows of an item share one."""
    names = list(dict.fromkeys(items))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    fold = {names[i]: place % k for place, i in enumerate(order)}
    return torch.tensor([fold[item] for item in items])


def held_out(x: Tensor, y: Tensor, fold: Tensor, fit: Fit, train: Tensor | None = None) -> Tensor:
    """Scores [n] of states [n, d], each by a probe that saw no row of its fold, and of the rest those in ``train`` [n]
    alone; NaN where these are of one class.
    """
    out = torch.full((len(x),), math.nan, dtype=torch.float64)
    for k in fold.unique().tolist():
        seen = (fold != k) if train is None else (fold != k) & train
        if bool(y[seen].any()) and not bool(y[seen].all()):
            out[fold == k] = fit(x[seen], y[seen])(x[fold == k]).double()
    return out


def resampled(items: Sequence[str], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each row counts [draws + 1, n]: once each, then as items are drawn with replacement."""
    names, number = np.unique(np.array(items), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return np.concatenate([np.ones((1, len(names))), drawn])[:, number]


def balanced_accuracies(score: np.ndarray, label: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """By draw of row ``counts`` [draws, n]: the mean of the shares of either class that are told rightly at log-odds 0;
    chance is 0.5.
    """
    with np.errstate(invalid="ignore"):
        shares = [
            (counts[:, side] @ ((score[side] > 0) == label[side])) / counts[:, side].sum(1) for side in (label, ~label)
        ]
    return (shares[0] + shares[1]) / 2


def balanced_accuracy(score: np.ndarray, label: np.ndarray) -> float:
    """The same of all rows."""
    return float(balanced_accuracies(score, label, np.ones((1, len(label))))[0])


def aurocs_within(score: np.ndarray, label: np.ndarray, cell: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """By draw of row ``counts`` [draws, n]: AUROC over the pairs of a positive and a negative of the same ``cell``
    (kind of dialogue and modality), so that telling cells apart helps nothing.
    """
    of, no = counts[:, label], counts[:, ~label]
    a, b = score[label][:, None], score[~label][None]
    same = (cell[label][:, None] == cell[~label][None]).astype(float)
    with np.errstate(invalid="ignore"):
        return ((of @ (((a > b) + 0.5 * (a == b)) * same)) * no).sum(1) / ((of @ same) * no).sum(1)


def auroc_within(score: np.ndarray, label: np.ndarray, cell: np.ndarray) -> float:
    """The same of all rows."""
    return float(aurocs_within(score, label, cell, np.ones((1, len(label))))[0])


def with_interval(values: np.ndarray) -> tuple[float, Interval | None]:
    """The first of some draws, which is all rows as they are, and the interval of the others."""
    return float(values[0]), interval(values[1:])


def over_items(
    statistic: Callable[[np.ndarray], float], items: Sequence[str], seed: int = 0
) -> tuple[float, Interval | None]:
    """A statistic of row numbers, with the interval of resampled items."""
    every = np.arange(len(items))
    return statistic(every), interval(bootstrap(statistic, items, DRAWS, seed))
