"""The trained part of a tuner as influence functions take it: flat weights, and the loss of each prompt's answer.

    w = theta - theta_0      l_k(w) = - log p(answer_k | prompt_k; theta_0 + w) / tokens of the answer

theta_0 is where training starts. Weight decay on w pulls back to it (ours): toward theta = 0 training would have no end
where a parameter's length is without effect, as that of a matrix which is made orthonormal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from factory import registry
from factory.bench import Bench
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.instruments.likelihood import answer_logprobs
from factory.model.encode import Batch
from factory.model.prefix import prefill
from factory.model.replay import Call, replay
from factory.model.steps import Step
from factory.model.view import ModelView
from factory.recipe.nodes import Node
from factory.steer.base import Direction
from factory.steer.sweep import run_trunk
from factory.train.influence import Moment, Trained
from factory.tune import Tuner

if TYPE_CHECKING:
    from . import Influences

BETAS, TINY = (0.9, 0.999), 1e-8


class Learning(registry.Params):
    """How a tuner's part is trained here: by ``steps`` of Adam over all prompts at once, at a ``learning_rate`` (null:
    the tuner's own) that falls to 0 as a cosine, with ``weight_decay`` and, where ``rho`` is not 0, sharpness-aware.
    """

    steps: PositiveInt = 200
    learning_rate: PositiveFloat | None = None
    weight_decay: PositiveFloat = 1e-2
    rho: NonNegativeFloat = 0.0


class Part:
    """A tuner that is put into a model for a block, each time as it starts with ``seed``; dropout is off."""

    def __init__(self, node: Node, seed: int) -> None:
        self.tuner: Tuner = node.make()
        self.seed = seed
        self.start: dict[str, Tensor] = {}

    @contextmanager
    def put(self, view: ModelView) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            own = self.tuner.apply(view, restorable=True)
        self.start = {name: p.detach().clone() for name, p in own.items()}
        try:
            yield
        finally:
            self.tuner.remove(view)

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.start.values())

    def theta(self, w: Tensor) -> dict[str, Tensor]:
        """The parameters by name where training has come to ``w`` [p]."""
        moved = w.split([p.numel() for p in self.start.values()])
        return {name: p + dw.view(p.shape).to(p) for (name, p), dw in zip(self.start.items(), moved, strict=True)}


class Lessons:
    """Samples in all forms, each with its answer toward a direction or with the other one."""

    def __init__(self, bench: Bench, samples: Sequence[ConflictSample], direction: Direction) -> None:
        self.bench, self.direction = bench, direction
        self.asked = [(s, form) for s in samples for form in bench.benchmark.forms]
        self.other: Direction = next(side for side in bench.benchmark.sources.names if side != direction)

    def __len__(self) -> int:
        return len(self.asked)

    def prompt(self, i: int, opposite: bool = False) -> Prompt:
        sample, form = self.asked[i]
        return self.bench.benchmark.example(sample, form, self.other if opposite else self.direction)


def untuned(view: ModelView, tuner: Tuner) -> int | None:
    """The block up to which no parameter of an applied tuner is used, -1 where that holds of what is before the blocks;
    None where it is not known to.
    """
    names = {id(p) for p in tuner.own.values()}
    inside = lambda module: {id(p) for p in module.parameters()} & names
    if inside(view.decoder) != names or not names:
        return None
    within = [inside(block) for block in view.layers]
    whole = tuner.inside_blocks and set().union(*within) == names
    return next(i for i, own in enumerate(within) if own) - 1 if whole else -1


class Asked(NamedTuple):
    """Prompts with answers, and where the model has run up to a block that no training changes, what it had come to."""

    batch: Batch
    call: Call
    states: Tensor | None


class _Said(nn.Module):
    """log p(answer | prompt) [B], and the answers' tokens [B], as a module whose parameters can be exchanged."""

    def __init__(self, view: ModelView, below: int | None) -> None:
        super().__init__()
        self.model, self.view, self.below = view.model, view, below

    def asked(self, prompts: Sequence[Prompt]) -> Asked:
        batch = self.view.encode(prompts)
        if self.below is None:
            return Asked(batch, {}, None)
        trunk = run_trunk(self.view, batch, self.below)
        return Asked(batch, {**trunk.call, "use_cache": False}, trunk.states)

    def forward(self, asked: Asked) -> tuple[Tensor, Tensor]:
        batch = asked.batch
        if self.below is None or asked.states is None:
            hidden, _ = prefill(self.view, batch)
        else:
            hidden = replay(self.view, self.below, asked.call, asked.states, batch.roles, None)
        return answer_logprobs(self.view, batch, hidden).double(), Step(batch.roles).answer.sum(-1)


class Tuned:
    """A tuner's trained part that learns the answers of ``lessons``. Its score is told on ``dev``."""

    tolerance = 3e-5  # the model runs in single precision

    def __init__(self, part: Part, view: ModelView, lessons: Lessons, dev: Lessons, params: Influences.Params) -> None:
        self.part, self.view, self.lessons, self.dev, self.params = part, view, lessons, dev, params
        self.prompts, self.taught = len(lessons), torch.arange(len(lessons))
        self.said = _Said(view, untuned(view, part.tuner))
        self.asked = cache(lambda prompts, which: self.said.asked([prompts.prompt(i, other) for i, other in which]))

    def fit(self, weights: Tensor | None, opposite: Tensor | None, moments: list[Moment] | None = None) -> Tensor:
        p = self.params.learning
        rate, every = p.learning_rate or self.part.tuner.learning_rate, max(1, p.steps // self.params.moments)
        w = torch.zeros(self.part.size, dtype=torch.float64)
        m, v, here = torch.zeros_like(w), torch.zeros_like(w), self.trained(w, opposite)
        here = here if weights is None else here.weighted(weights.double())
        for t in range(1, p.steps + 1):
            eta = rate * (1 + math.cos(math.pi * (t - 1) / p.steps)) / 2
            F = here.field
            m, v = (b * old + (1 - b) * new for b, old, new in zip(BETAS, (m, v), (F, F * F), strict=True))
            first, second = (x / (1 - b**t) for b, x in zip(BETAS, (m, v), strict=True))
            here = here.at(here.w - eta * first / (second.sqrt() + TINY))
            if moments is not None and t % every == 0:
                moments.append(Moment(here.w, eta * every))
        return here.w

    def trained(self, w: Tensor, opposite: Tensor | None) -> Trained:
        p, turned = self.params, [False] * self.prompts if opposite is None else opposite.tolist()

        def losses(w: Tensor, index: Tensor) -> Tensor:
            return self._error(w, self.lessons, tuple((i, turned[i]) for i in index.tolist()))

        return Trained(w, losses, self.prompts, p.learning.weight_decay, p.learning.rho, p.batch)

    def score(self, w: Tensor) -> Tensor:
        total, every = torch.zeros((), dtype=torch.float64), range(len(self.dev))
        for some in torch.arange(len(self.dev)).split(self.params.batch):
            toward, away = (tuple((i, other) for i in some.tolist()) for other in (False, True))
            if self.params.score == "error":
                total = total + self._error(w, self.dev, toward).sum()
            else:
                said = self._said(w, self.dev, toward)[0] - self._said(w, self.dev, away)[0]
                total = total + said.sum()
        return total / len(every)

    def _error(self, w: Tensor, lessons: Lessons, which: tuple[tuple[int, bool], ...]) -> Tensor:
        said, tokens = self._said(w, lessons, which)
        return -said / tokens.clamp_min(1)

    def _said(self, w: Tensor, lessons: Lessons, which: tuple[tuple[int, bool], ...]) -> tuple[Tensor, Tensor]:
        theta = {f"model.{name}": p for name, p in self.part.theta(w).items()}
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            said, tokens = functional_call(self.said, theta, (self.asked(lessons, which),))
        return said.to(w.device), tokens.to(w.device)
