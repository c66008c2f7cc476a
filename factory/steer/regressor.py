"""g_Theta, the two-layer network that predicts steering vectors (learn-to-steer; AMPS eq. 13), and how it is trained.

Structure, initialisation and losses follow the learn-to-steer code (SPEC.md 2.2, 2.3): encoder Linear(d, H) -> tanh (or
ReLU)
-> decoder Linear(H, d) without bias, the decoder started from the leading singular vectors of the centred targets.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from factory.registry import Params

Theta = dict[str, Tensor]


class RegressorParams(Params):
    """Training of g: ``loss`` mse is the papers' (AMPS eq. 13), l2s_code the released code's MSE + L1 - 0.1 cos."""

    hidden: PositiveInt = 100
    activation: Literal["tanh", "relu"] = "tanh"
    init: Literal["svd", "random"] = "svd"
    loss: Literal["mse", "l2s_code"] = "mse"
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = Field(0.0, ge=0)
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 64
    validation: float = Field(0.2, ge=0, lt=1)
    keep: Literal["best", "last"] = "best"


def g(theta: Theta, h: Tensor, activation: str) -> Tensor:
    """g_Theta(h): steering vectors [n, d] from states [n, d]."""
    act = torch.tanh if activation == "tanh" else torch.relu
    return act(h @ theta["encoder.weight"].T + theta["encoder.bias"]) @ theta["decoder.weight"].T


def fit_g(h: Tensor, v: Tensor, params: RegressorParams, seed: int) -> Theta:
    """Theta* = argmin E ||v - g_Theta(h)||² (AMPS eq. 13) over states ``h`` and targets ``v`` [n, d], float32.

    ``keep: best`` returns the epoch with the least loss on a held-out ``validation`` share. Same seed, same bytes.
    """
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(h), generator=rng)
    held = int(len(h) * params.validation)
    val, train = order[:held], order[held:]
    theta = {k: t.requires_grad_() for k, t in _start(h, v[train], params, rng).items()}
    optimizer = torch.optim.Adam(theta.values(), lr=params.learning_rate, weight_decay=params.weight_decay)
    best, best_loss = _copy(theta), float("inf")
    for _ in range(params.epochs):
        with torch.enable_grad():
            for batch in train[torch.randperm(len(train), generator=rng)].split(params.batch_size):
                optimizer.zero_grad()
                _loss(g(theta, h[batch], params.activation), v[batch], params.loss).backward()
                optimizer.step()
        if params.keep == "best" and held:
            with torch.no_grad():
                loss = float(_loss(g(theta, h[val], params.activation), v[val], params.loss))
            if loss < best_loss:
                best, best_loss = _copy(theta), loss
    return best if params.keep == "best" and held else _copy(theta)


def _copy(theta: Theta) -> Theta:
    return {k: t.detach().clone() for k, t in theta.items()}


def _start(h: Tensor, v: Tensor, params: RegressorParams, rng: torch.Generator) -> Theta:
    d, bound = h.shape[1], h.shape[1] ** -0.5

    def uniform(shape: tuple[int, ...], limit: float) -> Tensor:
        return (torch.rand(shape, generator=rng) * 2 - 1) * limit

    decoder = uniform((d, params.hidden), params.hidden**-0.5)
    if params.init == "svd":
        directions = torch.linalg.svd(v - v.mean(0), full_matrices=False).Vh[: params.hidden]
        decoder[:, : len(directions)] = directions.T
    return {
        "encoder.weight": uniform((params.hidden, d), bound),
        "encoder.bias": uniform((params.hidden,), bound),
        "decoder.weight": decoder,
    }


def _loss(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    mse = F.mse_loss(predicted, target)
    if kind == "mse":
        return mse
    return mse + F.l1_loss(predicted, target) - 0.1 * F.cosine_similarity(predicted, target, dim=-1).mean()
