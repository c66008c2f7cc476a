"""A linear gate on hidden states: logistic regression on a few principal components, by Newton's method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from factory.steer.base import Tensors

NEWTON_STEPS = 25


def fit_gate(t: Tensor, source: Tensor, components: int, ridge: float) -> Tensors:
    """Logistic regression of ``source`` [n] on PCA of states ``t`` [n, d], folded into one affine map: w [d], b,
    balanced accuracy.

    Where all prompts are of one class the gate is a constant, their share with one prompt of each class added.
    """
    n, n_source = len(t), int(source.sum())
    if n_source in (0, n):
        return {
            "w": t.new_zeros(t.shape[1]),
            "b": torch.logit(t.new_tensor((n_source + 1) / (n + 2))),
            "accuracy": t.new_tensor(1.0),
        }
    mean = t.mean(0)
    axes = torch.linalg.svd(t - mean, full_matrices=False).Vh[:components]
    x = (t - mean) @ axes.T
    spread = x.std(0).clamp_min(1e-8)
    x = F.pad(x / spread, (0, 1), value=1.0)
    y = source.float()
    weight = torch.where(source, n / (2 * n_source), n / (2 * (n - n_source)))
    theta = x.new_zeros(x.shape[1])
    penalty = torch.full_like(theta, ridge * n)
    penalty[-1] = 1e-6 * n  # the intercept is free, but for a trace that keeps the system regular
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(x @ theta)
        slope = x.T @ (weight * (p - y)) + penalty * theta
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + penalty.diag()
        theta = theta - torch.linalg.solve(curve, slope)
    right = ((x @ theta > 0) == source).float()
    w = (theta[:-1] / spread) @ axes
    return {"w": w, "b": theta[-1] - mean @ w, "accuracy": (right[source].mean() + right[~source].mean()) / 2}
