"""What influence is held against: training again without a prompt, without a group, and with opposites planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from factory.statistics.association import Interval
from factory.train.influence import FORMS, Form, Influence, Moment, Solved, Standing, Trained, trajectory
from factory.train.settle import Terrain, settled

from .elsewhere import by_dattri, linear_score
from .learners import Learner, slope

if TYPE_CHECKING:
    from . import Influences

SOLVED = 10.0  # what may be left of a linear system, in units of what may be left of a sample's gradient
REACHED = 1e-4  # what may be left of a sample's gradient where training counts as ended


class Told(NamedTuple):
    """What each prompt's presence adds to the score [N], of those that are not trained on NaN, and how far the linear
    system was from solved.
    """

    adds: Tensor
    residual: float


class Group(NamedTuple):
    """Prompts left out together: what their presence ``adds`` to the score by training again without them, by their
    influence, and by editing the weights; and the edit's error in the weights, relative to how far they move.
    """

    name: str
    members: list[int]
    adds: float
    told: float
    edited: float
    edit_error: float


@dataclass
class Run:
    """One training with its influences, in one form after the other."""

    learner: Learner
    params: Influences.Params
    opposite: Tensor | None = None

    @cached_property
    def _fitted(self) -> tuple[Tensor, list[Moment]]:
        moments: list[Moment] = []
        return self.learner.fit(None, self.opposite, moments), moments

    @cached_property
    def _settled(self) -> Solved:
        """The weights [p] that are looked at, and the length left of the field that is 0 where training ends."""
        w = self._fitted[0]
        if self.params.again == "anew":
            return Solved(w, 0.0)
        fitted = self.learner.trained(w, self.opposite)
        return settled(fitted, self.learner.tolerance, terrain=Terrain(fitted, self.params.written_out))

    @property
    def w(self) -> Tensor:
        return self._settled.x

    @property
    def went_on(self) -> float:
        """How far the weights went on to where training ends, relative to their own length."""
        return float((self.w - self._fitted[0]).norm() / self.w.norm().clamp_min(1e-30))

    @cached_property
    def trained(self) -> Trained:
        return self.learner.trained(self.w, self.opposite)

    @cached_property
    def terrain(self) -> Terrain:
        """What trainings without some prompts share."""
        return Terrain(self.trained, self.params.written_out)

    @cached_property
    def score(self) -> float:
        with torch.no_grad():
            return float(self.learner.score(self.w))

    @property
    def standing(self) -> Standing:
        return self.trained.standing

    @cached_property
    def damping(self) -> float:
        """The recipe's share of the largest curvature."""
        return self.params.damping * self.trained.steepest if self.params.damping else 0.0

    def closed(self, form: Form) -> Influence:
        p = self.params
        tolerance = SOLVED * self.learner.tolerance
        return Influence(self.trained, form, self.damping, p.written_out, tolerance, p.solver_steps)

    @property
    def forms(self) -> tuple[Form, ...]:
        """The closed forms that differ here."""
        return FORMS if self.trained.rho else ("plain",)

    @cached_property
    def told(self) -> dict[str, Told]:
        """By form; the closed ones are one where there is no ascent."""
        gradient = slope(self.learner, self.w)
        found: dict[str, tuple[Tensor, float]] = {form: self.closed(form).on_score(gradient) for form in self.forms}
        p, f = self.params, self.trained
        beside = {f"dattri.{s}": by_dattri(s, f, self.damping, gradient, p.solver_steps) for s in p.dattri}
        along = trajectory(self.trained, self._fitted[1], lambda w: slope(self.learner, w))
        every = {**found, "trajectory": (along, 0.0), **beside}
        return {form: self._spread(*each) for form, each in every.items()}

    def _spread(self, adds: Tensor, residual: float) -> Told:
        out = torch.full((self.prompts,), torch.nan, dtype=adds.dtype)
        out[self.learner.taught] = adds
        return Told(out, residual)

    @property
    def prompts(self) -> int:
        return self.learner.prompts

    def without(self, members: Sequence[int]) -> Tensor:
        """The weights [p] after training again without some prompts: settled from those with them, or trained anew with
        the same draws. NaN where the end of training was not reached.
        """
        weights = torch.ones(self.prompts)
        weights[list(members)] = 0
        if self.params.again == "anew":
            return self.learner.fit(weights, self.opposite)
        others = self.trained.weighted(weights[self.learner.taught].to(self.w.dtype))
        w, left = settled(others, self.learner.tolerance, terrain=self.terrain)
        return w if left < REACHED else torch.full_like(w, torch.nan)

    def adds(self, w: Tensor) -> float:
        """The score less that of other weights."""
        with torch.no_grad():
            return self.score - float(self.learner.score(w))

    @cached_property
    def sampled(self) -> set[int]:
        """The prompts that training is done again without, drawn at random."""
        taught, rng = self.learner.taught, torch.Generator().manual_seed(self.params.seed + 1)
        return set(taught[torch.randperm(len(taught), generator=rng)[: self.params.retrainings]].tolist())

    def left_out(self, prompt: int) -> float:
        """What a prompt's presence adds to the score, by training again without it."""
        return self.adds(self.without([prompt]))

    @cached_property
    def linear(self) -> dict[str, tuple[float, Interval | None]]:
        """By form, its linear datamodelling score over random halves of the prompts; of those whose training reached
        its end.
        """
        p, taught = self.params, self.learner.taught
        rng = torch.Generator().manual_seed(p.seed + 2)
        kept = torch.stack([torch.randperm(len(taught), generator=rng)[: len(taught) // 2] for _ in range(p.subsets)])
        others = [torch.ones(len(taught)).index_fill(0, half, 0).nonzero()[:, 0] for half in kept]
        scores = torch.tensor([self.score - self.adds(self.without(taught[each].tolist())) for each in others])
        ended = scores.isfinite()
        return {f: linear_score(t.adds[taught], scores[ended], kept[ended]) for f, t in self.told.items()}

    @cached_property
    def groups(self) -> list[Group]:
        """The share of prompts that add most and least to the score, and random ones as many, each left out."""
        p, taught = self.params, self.learner.taught
        size = max(1, round(p.removed * len(taught)))
        form = self.forms[0]
        order = taught[self.told[form].adds[taught].argsort()]
        rng = torch.Generator().manual_seed(p.seed)
        drawn = [taught[torch.randperm(len(taught), generator=rng)[:size]] for _ in range(p.draws)]
        named = {"top": order[-size:], "bottom": order[:size]} | {f"random {i}": d for i, d in enumerate(drawn)}
        return [self._group(name, sorted(members.tolist()), form) for name, members in named.items()]

    def _group(self, name: str, members: list[int], form: Form) -> Group:
        truth = self.without(members)
        places = torch.isin(self.learner.taught, torch.tensor(members)).nonzero()[:, 0]
        edit, moved = self.closed(form).removal(places).x, truth - self.w
        apart = (edit - moved).norm() / moved.norm().clamp_min(1e-30)
        told = float(self.told[form].adds[members].sum())
        return Group(name, members, self.adds(truth), told, self.adds(self.w + edit), float(apart))
