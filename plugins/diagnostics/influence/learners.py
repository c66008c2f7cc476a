"""What is trained on a run's states, as influence functions take it: flat weights, a loss of each prompt, how training
is done again without some, and a score on held-out prompts with its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from factory.bench import Bench
from factory.data.sample import ConflictSample
from factory.instruments.likelihood import answer_logprobs
from factory.steer import States, Steerer, Steering
from factory.steer.base import Direction, Tensors
from factory.steer.regressor import NAMES, Regressing, Theta, each_loss, fit_g, parted
from factory.steer.sweep import Trunk, final_states, run_trunk
from factory.train.influence import Moment, Trained

NEWTON_STEPS, ENOUGH = 50, 1e-10


class Learner(Protocol):
    """What is trained. ``taught`` [n]: the numbers of the prompts that it is trained on. ``opposite`` [N] booleans in
    ``fit`` and ``trained``: prompts that are taught the opposite of what they should be. ``prompts``: N. Training has
    ended where ``tolerance`` of a sample's gradient is left.
    """

    taught: Tensor
    prompts: int
    tolerance: float

    def fit(self, weights: Tensor | None, opposite: Tensor | None, moments: list[Moment] | None = None) -> Tensor:
        """Weights [p] after training, each prompt's loss weighed by ``weights`` [N]; ``moments`` are added to."""
        ...

    def trained(self, w: Tensor, opposite: Tensor | None) -> Trained:
        """The training that ended at ``w``; its samples are those of ``taught``."""
        ...

    def score(self, w: Tensor) -> Tensor:
        """The score [] on the held-out prompts, with its graph."""
        ...


def slope(learner: Learner, w: Tensor) -> Tensor:
    """The gradient [p] of the score."""
    at = w.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(learner.score(at), at)[0]


class Network:
    """The network g of a steering method. ``scored`` is the score of its weights."""

    tolerance = 1e-6

    def __init__(self, method: Steerer, states: States, scored: Callable[[Theta], Tensor], moments: int) -> None:
        assert isinstance(method, Regressing)
        self.net, self.states, self.scored = method.net, states, scored
        self.h, self.v, self.prompts = states.base, method.targets(states), len(states.base)
        self.every = max(1, self.net.epochs // moments)
        self.taught = parted(len(self.h), self.net, torch.Generator().manual_seed(states.seed))[1]
        d, hidden = self.h.shape[1], self.net.hidden
        self.shapes = dict(zip(NAMES, ((hidden, d), (hidden,), (d, hidden)), strict=True))

    def fit(self, weights: Tensor | None, opposite: Tensor | None, moments: list[Moment] | None = None) -> Tensor:
        rate = self.net.learning_rate * self.every * -(-len(self.taught) // self.net.batch_size)

        def watch(epoch: int, theta: Theta) -> None:
            if moments is not None and epoch % self.every == 0:
                moments.append(Moment(flat(theta), rate))

        v, tasks = self._targets(opposite), self.states.tasks
        return flat(fit_g(self.h, v, self.net, self.states.seed, tasks, weights, watch))

    def trained(self, w: Tensor, opposite: Tensor | None) -> Trained:
        h, v = self.h[self.taught].double(), self._targets(opposite)[self.taught].double()

        def losses(w: Tensor, index: Tensor) -> Tensor:
            return each_loss(self.theta(w), h[index], v[index], self.net)

        rho = self.net.rho if self.net.optimizer == "sam" else 0.0
        return Trained(w, losses, len(self.taught), self.net.weight_decay, rho)

    def score(self, w: Tensor) -> Tensor:
        return self.scored(self.theta(w))

    def theta(self, w: Tensor) -> Theta:
        parts = w.split([torch.Size(shape).numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def _targets(self, opposite: Tensor | None) -> Tensor:
        return self.v if opposite is None else torch.where(opposite[:, None], -self.v, self.v)


def flat(theta: Theta) -> Tensor:
    """The network's weights [p] in float64."""
    return torch.cat([theta[name].detach().double().flatten() for name in NAMES])


class Probe:
    """A logistic regression that tells the states with an instruction toward one side from those toward the other;
    ``ridge`` is its weight decay. Its score is the loss on ``held_out`` states.
    """

    tolerance = 1e-6

    def __init__(self, states: States, held_out: States, ridge: float) -> None:
        both = torch.cat([states.toward, states.away]).double()
        self.mean, self.spread = both.mean(0), both.std(0).clamp_min(1e-8)
        self.pairs, self.held_out = self._read(states), self._read(held_out)
        self.ridge, self.prompts, self.taught = ridge, len(states.base), torch.arange(len(states.base))

    def _read(self, states: States) -> tuple[Tensor, Tensor]:
        scaled = ((each.double() - self.mean) / self.spread for each in (states.toward, states.away))
        toward, away = (F.pad(each, (0, 1), value=1.0) for each in scaled)
        return toward, away

    def fit(self, weights: Tensor | None, opposite: Tensor | None, moments: list[Moment] | None = None) -> Tensor:
        sign = self._sign(opposite)
        c = torch.ones(len(self.taught)).double() if weights is None else weights.double()
        x, y = torch.cat(self.pairs), torch.cat([sign, -sign])
        c = torch.cat([c, c]) / (2 * c.sum())
        w = x.new_zeros(x.shape[1])
        for _ in range(NEWTON_STEPS):
            p = torch.sigmoid(-y * (x @ w))
            downhill = -(c * y * p) @ x + self.ridge * w
            if downhill.norm() < ENOUGH:
                break
            curve = (x * (c * p * (1 - p))[:, None]).T @ x + self.ridge * torch.eye(len(w)).double()
            w = w - torch.linalg.solve(curve, downhill)
        if moments is not None:
            moments.append(Moment(w, 1.0))
        return w

    def trained(self, w: Tensor, opposite: Tensor | None) -> Trained:
        sign = self._sign(opposite)

        def losses(w: Tensor, index: Tensor) -> Tensor:
            return pair_loss(w, *(x[index] * sign[index, None] for x in self.pairs))

        return Trained(w, losses, len(self.taught), self.ridge)

    def score(self, w: Tensor) -> Tensor:
        return pair_loss(w, *self.held_out).mean()

    def _sign(self, opposite: Tensor | None) -> Tensor:
        sign = torch.ones(len(self.taught)).double()
        return sign if opposite is None else torch.where(opposite, -sign, sign)


def pair_loss(w: Tensor, toward: Tensor, away: Tensor) -> Tensor:
    """Mean loss [n] of a state of either side."""
    return (F.softplus(-(toward @ w)) + F.softplus(away @ w)) / 2


def error_of(method: Steerer, held_out: States) -> Callable[[Theta], Tensor]:
    """The network's mean loss on held-out prompts, of its weights."""
    assert isinstance(method, Regressing)
    h, v = held_out.base.double(), method.targets(held_out).double()
    return lambda theta: each_loss({k: t.double() for k, t in theta.items()}, h, v, method.net).mean()


def margin_of(
    bench: Bench,
    method: Steerer,
    state: Tensors,
    samples: Sequence[ConflictSample],
    direction: Direction,
    strength: float,
    batch: int,
) -> Callable[[Theta], Tensor]:
    """Mean log p(answer toward ``direction``) - log p(the other answer), in nats, of ``samples`` in all forms, steered
    by the network's weights. The blocks up to the steered one run once.
    """
    view = bench.view
    asked = [(s, form) for s in samples for form in bench.benchmark.forms]
    trunks: list[tuple[float, Trunk]] = []
    for side, sign in ((direction, 1.0), ("text" if direction == "vision" else "vision", -1.0)):
        prompts = [bench.benchmark.example(s, form, side) for s, form in asked]
        for i in range(0, len(prompts), batch):
            trunks.append((sign, run_trunk(view, view.encode(prompts[i : i + batch]), bench.layer)))

    def margin(theta: Theta) -> Tensor:
        own = state | {name: t.float() for name, t in theta.items()}
        total = torch.zeros((), dtype=torch.float64)
        for sign, trunk in trunks:
            steering = Steering(method, own, method.placed(own, bench.layer), strength)
            said = answer_logprobs(view, trunk.batch, final_states(view, trunk, steering))
            total = total + sign * said.double().sum().cpu()
        return total / len(asked)

    return margin
