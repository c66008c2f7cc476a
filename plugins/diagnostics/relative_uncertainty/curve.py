"""The following curve P(text | dH_rel): logistic and isotonic fits, the balance point, bins (arXiv 2511.02243; SPEC.md
4).

The paper states neither bins nor fit; the logistic curve, the isotonic one beside it and the intervals are ours.
"""

from __future__ import annotations

import numpy as np

RIDGE = 1e-3  # keeps the slope finite where the data are separable
STEPS = 25
EXPONENT = 30.0


def relative_uncertainty(h_v: np.ndarray, h_t: np.ndarray) -> np.ndarray:
    """dH_rel = 2 (H^(t) - H^(v)) / (H^(t) + H^(v)) in [-2, 2]; 0 where both are 0."""
    total = h_v + h_t
    return np.where(total > 0, 2 * (h_t - h_v) / np.where(total > 0, total, 1), 0.0)


def logistic(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """a, b of p = sigmoid(a + b x), by Newton's method on the penalised likelihood of y [n] in {0, 1}."""
    X, theta = np.stack([np.ones_like(x), x], 1), np.zeros(2)
    for _ in range(STEPS):
        p = sigmoid(X @ theta)
        slope = X.T @ (p - y) + RIDGE * theta
        curve = (X * (p * (1 - p))[:, None]).T @ X + RIDGE * np.eye(2)
        step = np.linalg.solve(curve, slope)
        theta = theta - step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
    return float(theta[0]), float(theta[1])


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -EXPONENT, EXPONENT)))


def balance_point(x: np.ndarray, y: np.ndarray) -> float:
    """dH_rel where the logistic curve, falling, crosses one half; NaN where it does not within the range of x."""
    a, b = logistic(x, y)
    point = -a / b if b < 0 else np.nan
    return float(point) if x.min() <= point <= x.max() else float("nan")


def isotonic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The decreasing step function nearest to y: distinct x, ascending, and its values there (pool adjacent
    violators).
    """
    at, inverse, weight = np.unique(x, return_inverse=True, return_counts=True)
    mean = np.bincount(inverse, y) / weight
    blocks: list[list[float]] = []  # mean, weight, points
    for m, w in zip(mean, weight, strict=True):
        blocks.append([m, w, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            m2, w2, n2 = blocks.pop()
            m1, w1, n1 = blocks.pop()
            blocks.append([(m1 * w1 + m2 * w2) / (w1 + w2), w1 + w2, n1 + n2])
    return at, np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])


def isotonic_crossing(x: np.ndarray, y: np.ndarray) -> float:
    """Where the isotonic curve crosses one half, interpolated between its points; NaN where it does not."""
    at, value = isotonic(x, y)
    above, below = np.flatnonzero(value >= 0.5), np.flatnonzero(value <= 0.5)
    if not len(above) or not len(below):
        return float("nan")
    i, j = above[-1], below[0]
    if j <= i:  # it stays at one half: the middle of that stretch
        return float((at[j] + at[i]) / 2)
    return float(at[i] + (value[i] - 0.5) / (value[i] - value[j]) * (at[j] - at[i]))


def bins(x: np.ndarray, n: int) -> np.ndarray:
    """Number of the bin [len(x)] of each value, ``n`` bins of about equal counts; equal values share one."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, n + 1)[1:-1]))
    _, number = np.unique(np.searchsorted(edges, x, side="left"), return_inverse=True)
    return number
