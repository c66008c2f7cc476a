"""Which training samples made a learnt steering prefer what it prefers: signed influence on a chosen score (ours, after
Koh and Liang, arXiv 1703.04730; SAM's influence functions, arXiv 2507.04059, reconstructed, SPEC-2 12.5; TracIn, arXiv
2002.08484).

A training prompt's influence is what its presence adds to the score: the score with it minus the score without it.
``factory.train.influence`` has the forms. The steering network's score is the margin of the two answers of dev prompts
that it steers, or its error on them; a probe's is its error; that of a tuner's trained part, which learns to answer
toward a direction, is the margin or the loss of the answers to dev prompts. Held against training again: with each of
some prompts left out, with groups left out, and with the targets of some prompts turned to the opposite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from factory import registry
from factory.bench import Bench
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, Known, about
from factory.diagnose.summary import Summary
from factory.errors import UserError
from factory.recipe.nodes import Node, plugin, read_node
from factory.registry import register
from factory.steer import States
from factory.steer.base import Direction
from factory.steer.regressor import Regressing

from .checks import Run
from .elsewhere import Solver, missing
from .learners import Learner, Network, Probe, error_of, margin_of
from .summary import summarise
from .tuned import Learning, Lessons, Part, Tuned

NAN = float("nan")


@register("diagnostic", "influence")
class Influences(Diagnostic):
    """What each training prompt's presence adds to the score of a steering's network, or of a probe, with checks by
    training again.

    Metrics of a training prompt: ``total``, ``frozen``, ``plain`` (closed forms; without an ascent ``plain`` alone) and
    ``trajectory``, NaN where it is not trained on; ``left_out``, the truth, of ``retrainings`` of them; ``planted`` and
    ``harm.FORM`` of a training with planted opposites; of prompts in a group ``removed``, ``told``, ``edited`` and
    ``edit_error``. The first prompt has the ``score``, each form's ``residual`` and ``lds``, and where training ended.
    """

    splits = ("train",)

    class Params(registry.Params):
        """``what`` is trained: the ``network`` of the method ``of`` (l2s, amps with its own beta), a linear ``probe``
        that tells the states toward either side apart, with weight decay ``ridge``, or the trained part of a ``tuner``,
        which learns the answers toward a side as ``learning`` says. It is told toward each of ``directions``.
        ``score``: the ``margin`` log p(answer) - log p(other answer) of dev prompts, under the steering at
        ``strength`` or tuned, or the ``error`` on them.

        ``damping`` of the closed forms, as a share of the largest curvature; up to ``exact`` weights they are solved
        densely, beyond in ``solver_steps`` steps; ``dattri`` has that library's solvers tell the plain form too.
        ``subsets``: trainings on a random half of the prompts, over which dattri tells the linear datamodelling score.
        ``moments``: checkpoints of the trajectory. ``again``: weights are taken on to where training ends (settle),
        with all prompts and then without some, or training is begun anew with the same draws, and influence told of
        the weights as trained. ``retrainings`` without a prompt; a share ``planted`` of prompts with opposite targets;
        a share ``removed`` from top, bottom and, so many ``draws``, at random; 0 leaves a check out. ``batch`` prompts
        are run at a time; ``seed`` of the checks.
        """

        what: Literal["network", "probe", "tuner"] = "network"
        of: Annotated[Node, plugin("steering")] = Field(default_factory=lambda: read_node("steering", "l2s"))
        tuner: Annotated[Node, plugin("tuner")] | None = None
        learning: Learning = Learning()
        ridge: PositiveFloat = 1e-2
        directions: tuple[Direction, ...] = Field(("vision",), min_length=1)
        score: Literal["margin", "error"] = "margin"
        strength: float = 1.0
        damping: NonNegativeFloat = 0.0
        exact: NonNegativeInt = 1000
        solver_steps: PositiveInt = 200
        dattri: tuple[Solver, ...] = ()
        subsets: NonNegativeInt = 0
        moments: PositiveInt = 10
        again: Literal["settle", "anew"] = "settle"
        retrainings: NonNegativeInt = 30
        planted: float = Field(0.1, ge=0, le=0.5)
        removed: float = Field(0.05, ge=0, le=0.5)
        draws: PositiveInt = 5
        batch: PositiveInt = 32
        seed: int = 0

        @field_validator("of")
        @classmethod
        def _regressing(cls, of: Node) -> Node:
            method = of.make()
            why = None if isinstance(method, Regressing) else "needs a method with a trained network, as l2s or amps"
            if isinstance(method, Regressing) and method.net.balance == "task":
                why = "a network trained with balance: task has no loss of each sample; leave it at none"
            if why:
                raise ValueError(f"{why}; got '{of.type}'")
            return of

        @model_validator(mode="after")
        def _scored(self) -> Self:
            if self.what == "probe" and self.score != "error":
                raise ValueError("a probe steers nothing: its score is 'error'")
            if (self.what == "tuner") != (self.tuner is not None):
                raise ValueError("`what: tuner` and `tuner:` go together")
            if self.dattri and self.what == "tuner":
                raise ValueError("dattri takes no tuner")
            if (self.dattri or self.subsets) and (why := missing()):
                raise ValueError(why)
            return self

        @property
        def written_out(self) -> int:
            """Up to how many weights the curvature is written out; a tuner's column of it runs the model, so that it is
            where this takes no more products than to solve in steps.
            """
            return min(self.exact, self.solver_steps) if self.what == "tuner" else self.exact

        @property
        def trained(self) -> str:
            """What is trained, for people."""
            if self.what == "tuner":
                assert self.tuner is not None
                return f"the trained part of {self.tuner.label}"
            return "a probe" if self.what == "probe" else f"the network of {self.of.label}"

    params: Params

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.known: Known | None = None
        self.states: dict[tuple[str, str], States] = {}
        self.runs: dict[str, tuple[Run, Run | None]] = {}

    def acquaint(self, known: Known) -> None:
        self.known, p = known, self.params
        for direction in () if p.what == "tuner" else p.directions:
            for split in ("train", "dev") if p.score == "error" else ("train",):
                self.states[direction, split] = known.states(direction, split)

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        """Raises ``UserError`` where the run's training samples are not known."""
        if self.known is None:
            raise UserError(f"{self.name} needs the run's training samples: list it under `diagnostics:` of a recipe")
        forms = bench.benchmark.forms
        places = {s.id: i * len(forms) for i, s in enumerate(self.known.samples["train"])}
        rows = []
        for direction in self.params.directions:
            with self.part.put(bench.view) if self.part else nullcontext():
                run, planted = self._runs(bench, direction)
                for sample in samples:
                    for place, form in enumerate(forms, places[sample.id]):
                        named = {**about(sample, form, "base"), "direction": direction, "layer": None, "head": None}
                        rows += [{**named, "group": "", **row} for row in self._rows(run, planted, place)]
        return rows

    @cached_property
    def part(self) -> Part | None:
        """The tuner's, where it is one that is trained."""
        assert self.known is not None
        return Part(self.params.tuner, self.known.seed) if self.params.tuner else None

    def _rows(self, run: Run, planted: Run | None, place: int) -> Iterator[dict[str, Any]]:
        for form, told in run.told.items():
            yield {"metric": form, "value": float(told.adds[place])}
        if place in run.sampled:
            yield {"metric": "left_out", "value": run.left_out(place)}
        if planted is not None and planted.opposite is not None and place in planted.learner.taught:
            yield {"metric": "planted", "value": float(planted.opposite[place])}
            harm = 1.0 if self.params.score == "error" else -1.0
            for form, told in planted.told.items():
                yield {"metric": f"harm.{form}", "value": harm * float(told.adds[place])}
        for group in run.groups if self.params.removed else ():
            if place in group.members:
                for metric in ("adds", "told", "edited", "edit_error"):
                    yield {"metric": f"group.{metric}", "group": group.name, "value": getattr(group, metric)}
        if place == 0:
            yield {"metric": "score", "value": run.score}
            standing = run.standing
            for metric in ("gradient", "slope", "moves", "turn"):
                yield {"metric": f"end.{metric}", "value": float(getattr(standing, metric))}
            yield {"metric": "end.went_on", "value": run.went_on}
            for form, told in run.told.items():
                yield {"metric": f"residual.{form}", "value": told.residual}
            for form, (value, between) in (run.linear if self.params.subsets else {}).items():
                for end, number in zip(("", "_low", "_high"), (value, *(between or (NAN, NAN))), strict=True):
                    yield {"metric": f"lds{end}.{form}", "value": number}

    def _runs(self, bench: Bench, direction: Direction) -> tuple[Run, Run | None]:
        if direction not in self.runs:
            learner, p = self._learner(bench, direction), self.params
            rng = torch.Generator().manual_seed(p.seed)
            opposite = torch.zeros(learner.prompts, dtype=torch.bool)
            wrong = learner.taught[torch.randperm(len(learner.taught), generator=rng)]
            opposite[wrong[: round(p.planted * len(wrong))]] = True
            self.runs[direction] = Run(learner, p), Run(learner, p, opposite) if opposite.any() else None
        return self.runs[direction]

    def _learner(self, bench: Bench, direction: Direction) -> Learner:
        assert self.known is not None
        p, samples = self.params, self.known.samples
        if self.part:
            lessons, asked = (Lessons(bench, samples[split], direction) for split in ("train", "dev"))
            return Tuned(self.part, bench.view, lessons, asked, p)
        states = self.states[direction, "train"]
        if p.what == "probe":
            return Probe(states, self.states[direction, "dev"], p.ridge)
        method = p.of.make()
        if p.score == "error":
            scored = error_of(method, self.states[direction, "dev"])
        else:
            with torch.no_grad():
                state = method.fit(states)
            scored = margin_of(bench, method, state, samples["dev"], direction, p.strength, p.batch)
        return Network(method, states, scored, p.moments)

    def whole_prompts(self, ids: Sequence[str]) -> int:
        """For a margin, the dev prompts with either answer: about as many. A step of a tuner's training, and a product
        with its curvature, run each prompt forth and back.
        """
        scored = 2 * len(ids) if self.params.score == "margin" else 0
        p = self.params
        return scored + 3 * (p.learning.steps + p.solver_steps) * len(ids) if p.what == "tuner" else scored

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params)
