"""g_Theta, the two-layer network that predicts steering vectors (learn-to-steer; AMPS eq. 13), and how it is trained.

Structure, initialisation and losses follow the learn-to-steer code (SPEC.md 2.2, 2.3): encoder Linear(d, H) -> tanh (or
ReLU)
-> decoder Linear(H, d) without bias, the decoder started from the leading singular vectors of the centred targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from factory.registry import Params
from factory.train.sam import ascended

if TYPE_CHECKING:
    from factory.steer.base import States

Theta = dict[str, Tensor]
NAMES = ("encoder.weight", "encoder.bias", "decoder.weight")
# Trainings of this process, the oldest first to go: methods with one and the same network share its training.
_KEPT = 8
_TRAINED: dict[bytes, Theta] = {}
Watch = Callable[[int, Theta], None]
"""What follows a training: told each epoch, counted from 1, and the weights at its end."""


class RegressorParams(Params):
    """Training of g: ``loss`` mse is the papers' (AMPS eq. 13), l2s_code the released code's MSE + L1 - 0.1 cos, and
    l2s_pope the same as it trains on POPE, where the weight of the cosine is 0.1 min(1, epoch / 100), and 0.05 in
    validation.

    ``schedule`` cosine: the rate rises over ``warmup`` epochs and falls to 0 along a cosine, step by step. ``balance``
    task: the loss of a batch is the mean of its tasks' own losses, 0 for a task that the batch lacks. The released POPE
    training is loss l2s_pope, schedule cosine, warmup 50, learning_rate 5e-5 and balance task, its tasks being the
    questions whose answer is yes and those whose answer is no; its targets are means over the tokens of a completion:
    ``collect: {completion: "{answer}, the image", position: mean_completion}``.

    ``hidden`` units with an ``activation`` between encoder and decoder; ``init`` starts the decoder from the targets'
    singular vectors or at random. Adam at ``learning_rate`` with ``weight_decay`` for ``epochs`` of batches of
    ``batch_size``; ``validation`` is the share held out, ``keep`` the epoch that is best there or the last.

    ``optimizer`` sam (ours) gives Adam the gradient at the weights that an ascent of length ``rho`` reaches
    (sharpness-aware minimisation), and keeps the ``sharpness`` of what was learnt, L(w + eps) - L(w), beside it.
    """

    hidden: PositiveInt = 100
    activation: Literal["tanh", "relu"] = "tanh"
    init: Literal["svd", "random"] = "svd"
    loss: Literal["mse", "l2s_code", "l2s_pope"] = "mse"
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: NonNegativeInt = 50
    balance: Literal["none", "task"] = "none"
    optimizer: Literal["adam", "sam"] = "adam"
    rho: PositiveFloat = 0.05
    weight_decay: float = Field(0.0, ge=0)
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 64
    validation: float = Field(0.2, ge=0, lt=1)
    keep: Literal["best", "last"] = "best"


@runtime_checkable
class Regressing(Protocol):
    """A steering method whose vectors a network g predicts: how it is trained, and what it is to give."""

    @property
    def net(self) -> RegressorParams: ...

    def targets(self, states: States) -> Tensor:
        """The vectors [n, d] that g is trained to give at ``states.base``."""
        ...


def g(theta: Theta, h: Tensor, activation: str) -> Tensor:
    """g_Theta(h): steering vectors [n, d] from states [n, d]."""
    act = torch.tanh if activation == "tanh" else torch.relu
    return act(h @ theta["encoder.weight"].T + theta["encoder.bias"]) @ theta["decoder.weight"].T


def fit_g(
    h: Tensor,
    v: Tensor,
    params: RegressorParams,
    seed: int,
    tasks: Sequence[str] = (),
    weights: Tensor | None = None,
    watch: Watch | None = None,
) -> Theta:
    """Theta* = argmin E ||v - g_Theta(h)||² (AMPS eq. 13) over states ``h`` and targets ``v`` [n, d], float32.

    ``tasks``: the task of each, for ``balance``. ``keep: best`` returns the epoch with the least loss on a held-out
    ``validation`` share. Same seed, same bytes; what was asked before is not trained again. ``weights`` [n] weigh each
    sample's loss in the mean of its batch: one of weight 0 teaches nothing, while start and batches stay as they are.
    Raises ValueError where ``balance: task`` lacks a task for each.
    """
    if weights is not None or watch is not None:
        return _train(h, v, params, seed, tasks, weights, watch)
    asked = _asked(h, v, params, seed, tasks)
    if asked not in _TRAINED:
        if len(_TRAINED) == _KEPT:
            _TRAINED.pop(next(iter(_TRAINED)))
        _TRAINED[asked] = _train(h, v, params, seed, tasks, weights, watch)
    return _copy(_TRAINED[asked])


def _asked(h: Tensor, v: Tensor, params: RegressorParams, seed: int, tasks: Sequence[str]) -> bytes:
    told = hashlib.sha256(repr((h.shape, v.shape, h.dtype, v.dtype, params, seed, tuple(tasks))).encode())
    for tensor in (h, v):
        told.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return told.digest()


def _train(
    h: Tensor,
    v: Tensor,
    params: RegressorParams,
    seed: int,
    tasks: Sequence[str],
    weights: Tensor | None,
    watch: Watch | None,
) -> Theta:
    rng = torch.Generator().manual_seed(seed)
    val, train = parted(len(h), params, rng)
    groups = _groups(tasks, len(h)) if params.balance == "task" else None
    theta = {k: t.requires_grad_() for k, t in _start(h, v[train], params, rng).items()}
    optimizer = torch.optim.Adam(theta.values(), lr=params.learning_rate, weight_decay=params.weight_decay)
    scheduler = _scheduler(optimizer, params, -(-len(train) // params.batch_size))
    best, best_loss = _copy(theta), float("inf")
    for epoch in range(params.epochs):
        cosine = cosine_weight(params.loss, epoch)
        with torch.enable_grad():
            for batch in train[torch.randperm(len(train), generator=rng)].split(params.batch_size):
                own = None if weights is None else weights[batch]
                if own is not None and not own.any():
                    continue
                optimizer.zero_grad()
                of = None if groups is None else groups[batch]
                of_batch = (h[batch], v[batch], params.activation, cosine, of, len(set(tasks)), own)
                _balanced(theta, *of_batch).backward()
                if params.optimizer == "sam":
                    with ascended(theta.values(), params.rho):
                        _balanced(theta, *of_batch).backward()
                optimizer.step()
                scheduler.step()
        if params.keep == "best" and len(val):
            with torch.no_grad():
                held_out = float(_loss(g(theta, h[val], params.activation), v[val], cosine_weight(params.loss)))
            if held_out < best_loss:
                best, best_loss = _copy(theta), held_out
        if watch:
            watch(epoch + 1, _copy(theta))
    found = best if params.keep == "best" and len(val) else _copy(theta)
    return found | {"sharpness": sharpness(found, h[train], v[train], params)} if params.optimizer == "sam" else found


def parted(n: int, params: RegressorParams, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The numbers of the samples that ``fit_g`` holds out, and of those that it trains on; ``rng`` has its seed."""
    order, held = torch.randperm(n, generator=rng), int(n * params.validation)
    return order[:held], order[held:]


def each_loss(theta: Theta, h: Tensor, v: Tensor, params: RegressorParams) -> Tensor:
    """The loss [n] of each sample, of which a batch's is the mean, as in the last epoch of a training."""
    predicted, cosine = g(theta, h, params.activation), cosine_weight(params.loss, params.epochs - 1)
    return _each(predicted, v, cosine)


def sharpness(theta: Theta, h: Tensor, v: Tensor, params: RegressorParams) -> Tensor:
    """L(w + eps(w)) - L(w) [] of a trained network over states ``h`` and targets ``v`` [n, d]."""
    w = {k: t.detach().clone().requires_grad_() for k, t in theta.items()}
    loss = lambda: _loss(g(w, h, params.activation), v, cosine_weight(params.loss))
    with torch.enable_grad():
        here = loss()
        here.backward()
    with ascended(w.values(), params.rho), torch.no_grad():
        there = loss()
    return there - here.detach()


def cosine_weight(loss: str, epoch: int | None = None) -> float | None:
    """The weight of the cosine in ``loss``, in an ``epoch`` of training or in validation; None for squared errors
    alone.
    """
    if loss == "l2s_pope":
        return 0.05 if epoch is None else 0.1 * min(1.0, epoch / 100)
    return 0.1 if loss == "l2s_code" else None


def _groups(tasks: Sequence[str], n: int) -> Tensor:
    if len(tasks) != n:
        raise ValueError(f"balance: task needs the task of each of {n} states, not {len(tasks)}")
    number = {task: i for i, task in enumerate(dict.fromkeys(tasks))}
    return torch.tensor([number[task] for task in tasks])


def _scheduler(optimizer: torch.optim.Optimizer, params: RegressorParams, steps: int) -> LambdaLR:
    """``steps``: those of an epoch."""
    if params.schedule == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    from transformers import get_cosine_schedule_with_warmup  # brings all of PEFT, a second that few fits need

    return get_cosine_schedule_with_warmup(optimizer, params.warmup * steps, params.epochs * steps)


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


def _balanced(
    theta: Theta,
    h: Tensor,
    v: Tensor,
    activation: str,
    cosine: float | None,
    groups: Tensor | None,
    number: int,
    weights: Tensor | None,
) -> Tensor:
    """The loss of a batch, or the sum of its groups' own losses over the ``number`` of groups that there are."""
    predicted, target = g(theta, h, activation), v
    of = lambda chosen: _loss(predicted[chosen], target[chosen], cosine)
    if weights is not None:
        each = _each(predicted, target, cosine)
        of = lambda chosen: (weights[chosen] * each[chosen]).sum() / weights[chosen].sum().clamp_min(1e-30)
    if groups is None:
        return of(slice(None))
    return torch.stack([of(groups == k) for k in groups.unique()]).sum() / number


def _each(predicted: Tensor, target: Tensor, cosine: float | None) -> Tensor:
    """The parts [n] whose mean ``_loss`` is."""
    mse = (predicted - target).square().mean(-1)
    if cosine is None:
        return mse
    return mse + (predicted - target).abs().mean(-1) - cosine * F.cosine_similarity(predicted, target, dim=-1)


def _loss(predicted: Tensor, target: Tensor, cosine: float | None) -> Tensor:
    mse = F.mse_loss(predicted, target)
    if cosine is None:
        return mse
    return mse + F.l1_loss(predicted, target) - cosine * F.cosine_similarity(predicted, target, dim=-1).mean()
