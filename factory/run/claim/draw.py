"""One draw of the data in one scoring: everything is fitted on its train split, chosen on dev and scored on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from factory import progress
from factory.blame import wrong
from factory.faults import concerning
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.explain import explain
from factory.recipe.nodes import given, read_node
from factory.recipe.sections.claim import PlantedSpec
from factory.run import inputs
from factory.run.claim.entrants import (
    LEARNED,
    NONE,
    NULL,
    OWN,
    SHUFFLED,
    Answers,
    Displaced,
    Entrant,
    chosen,
    chosen_entrants,
    displaced,
    entrants_answers,
)
from factory.run.methods.choose import Choice
from factory.run.methods.study import Study
from factory.run.rundir import RunDir, Stage
from factory.steer import Context, States, Steerer
from factory.steer.base import Direction, Tensors, sound
from factory.steer.runtime import Steering

Choices = dict[tuple[str, str], Choice]
Fits = dict[tuple[Direction, str, str], Tensors]
"""By direction, family and variant."""


@dataclass(frozen=True)
class Scored:
    """What came of one draw, scoring and seed: the choices of dev, and by direction and family the outcomes [n] of the
    test ``samples``. ``effect`` is that of the planted model; None where it is the model itself."""

    draw: int
    scoring: str
    seed: int
    samples: tuple[str, ...]
    tasks: tuple[str, ...]
    choices: Choices
    outcomes: Mapping[tuple[Direction, str], Tensor]
    effect: float | None = None

    def has(self, direction: Direction, family: str, outcome: int = 0) -> Tensor:
        """Which samples have an outcome (0: follow) [n], float64."""
        return (self.outcomes[direction, family] == outcome).double()


def of_draw(recipe: Recipe, draw: int, scoring: str) -> Recipe:
    """The recipe on one draw of its data in one scoring. Raises ``UserError`` for a benchmark that has neither."""
    data = given(recipe.data)
    try:
        node = read_node(data.kind, {**data.model_dump(mode="json"), "seed": draw, "scoring": scoring})
    except ValidationError as error:
        why = "; ".join(text for _, text in explain(error, data.plugin.Params))
        raise wrong(given(recipe.claim), "scorings", f"'{data.type}' cannot be asked so: {why}") from error
    return recipe.model_copy(update={"data": node})


class Draw:
    """The claim on one draw and scoring; its stages are kept under its ``name``."""

    def __init__(
        self, recipe: Recipe, folder: RunDir, view: ModelView, draw: int, scoring: str, limit: int | None
    ) -> None:
        self.draw, self.scoring, self.spec = draw, scoring, given(recipe.claim)
        self.name = f"{scoring}-{draw}"
        self.recipe = of_draw(recipe, draw, scoring)
        self.folder = folder.part(self.name)
        self.study = Study(self.recipe, self.folder, view, limit)
        [self.node] = self.recipe.steering
        self.method: Steerer = self.node.make()
        self.variants: Mapping[str, Steerer] = self.method.variants()
        self.null = self.variants[self.spec.null]
        self.directions = self.recipe.evaluate.directions
        self.strengths = tuple(self.recipe.evaluate.strengths)
        self._fits: dict[int, Fits] = {}

    @cached_property
    def about(self) -> dict[str, Any]:
        """What all of the draw's stages depend on."""
        study, e = self.study, self.recipe.evaluate
        return {
            **study.inputs,
            "collect": study.collect_stage("collect").digest,
            "scoring": study.scoring,
            "layer": study.layer,
            "ends": study.view.end_ids,
            "method": inputs.with_code(self.node),
            "max_new_tokens": e.max_new_tokens,
            "batch_size": e.batch_size,
        }

    def states(self, direction: Direction, split: str, seed: int = 0) -> States:
        """What is collected of a split's prompts, row after row."""
        return replace(self.study.states_of(direction, split), seed=seed)

    def fits(self, seed: int) -> Fits:
        """Every variant toward every direction, fitted on the train split's states."""
        if seed not in self._fits:
            unfitted = {
                (d, NULL if variant == self.spec.null else LEARNED, variant): (steerer, self.states(d, "train", seed))
                for d in self.directions
                for variant, steerer in self.variants.items()
            }
            self._fits[seed] = self._fitted(self.folder.part(f"seed{seed}"), unfitted, {"seed": seed})
        return self._fits[seed]

    def run(self, seed: int) -> Scored:
        """The claim on the model itself."""
        known = self.fits(seed)

        def entrants(split: str) -> list[Entrant]:
            found = [Entrant(d, NONE, "", (0.0,), lambda rows, a: None) for d in self.directions]
            for (d, family, variant), state in known.items():
                found.append(self._entrant(d, family, variant, self.variants[variant], state))
            for d in self.directions:
                state, states = known[d, NULL, self.spec.null], self.states(d, split)
                for variant, steerer in self.variants.items():
                    if variant != self.spec.null:
                        scale = steerer.own_scale(states, state)
                        found.append(self._entrant(d, OWN, variant, self.null, state, scale))
            return found

        return self._score(self.folder.part(f"seed{seed}"), entrants, {"seed": seed}, seed, None)

    def _entrant(
        self, d: Direction, family: str, variant: str, steerer: Steerer, state: Tensors, scale: Tensor | None = None
    ) -> Entrant:
        """A fitted variant, its strength scaled for each prompt where a ``scale`` [n of the split] is given."""
        where = steerer.placed(state, self.study.layer)
        steering = lambda rows, a: Steering(steerer, state, where, scaled(a, scale, rows))
        return Entrant(d, family, variant, self.strengths, steering)

    def _fitted(self, folder: RunDir, named: Mapping[tuple, tuple[Steerer, States]], parts: dict[str, Any]) -> Fits:
        stage = folder.stage("fit", {**self.about, **parts})

        def fit(key: tuple, steerer: Steerer, states: States) -> Tensors:
            with concerning(f"{self.node.label} ({'/'.join(key)})"):
                return sound(steerer.fit(states), "fit")

        work = {"-".join(key): partial(fit, key, *pair) for key, pair in named.items()}
        found = dict(zip(named, progress.gather(stage, work), strict=True))
        if not stage.done:
            stage.finish({"fitted": len(found)})
        return found

    def _score(self, folder: RunDir, entrants: Any, parts: dict[str, Any], seed: int, effect: float | None) -> Scored:
        """Choose on dev, score on test."""
        about = {**self.about, **parts, "strengths": self.strengths}
        on_dev = entrants("dev")
        dev = self._asked(folder.stage("dev", about), "dev", on_dev)
        choices = chosen(on_dev, dev, self.recipe.evaluate.error_budget)
        stage = folder.stage("test", {**about, "choices": [asdict(c) for c in choices.values()]})
        on_test = chosen_entrants(entrants("test"), choices)
        test = self._asked(stage, "test", on_test)
        samples = self.study.samples["test"]
        outcomes = {(e.direction, e.family): test[e.key(e.strengths[0])] for e in on_test}
        ids, tasks = tuple(s.id for s in samples), tuple(s.task for s in samples)
        return Scored(self.draw, self.scoring, seed, ids, tasks, choices, outcomes, effect)

    def _asked(self, stage: Stage, split: str, entrants: Sequence[Entrant]) -> Answers:
        """The outcomes of a whole split under each entrant."""
        study, forms = self.study, len(self.study.benchmark.forms)
        work, first = {}, 0
        for batch in study.batches(study.samples[split], self.recipe.evaluate.batch_size):
            rows = slice(first, first := first + len(batch) * forms)
            work[f"{rows.start:05d}"] = partial(entrants_answers, study, batch, rows, entrants)
        chunks = progress.gather(stage, work)
        if not stage.done:
            stage.finish({"samples": len(study.samples[split])})
        return {key: torch.cat([c[key] for c in chunks]) for key in chunks[0]}

    def planted(self, spec: PlantedSpec, before: Scored, effect: float) -> Scored:
        """The same on a model with a planted ``effect``, whose strength is that chosen for the null ``before``."""
        seed, null = before.seed, self.spec.null
        folder = self.folder.part(f"planted{effect:g}")
        alpha = {d: before.choices[d, NULL].strength for d in self.directions}
        parts = {"seed": seed, "effect": effect, "law": spec.law, "variants": spec.variants, "alpha": alpha}
        known, law = self.fits(seed), self.variants[spec.law]

        def shift(d: Direction, split: str) -> Tensor:
            """How far each prompt is from where the null's strength is right, in its vectors [n]."""
            scale = law.own_scale(self.states(d, split), known[d, NULL, null])
            return -effect * alpha[d] * (scale - 1)

        named: dict[tuple, tuple[Steerer, States]] = {}
        for d in self.directions:
            states = moved(self.states(d, "train", seed), shift(d, "train"), self.null, known[d, NULL, null])
            named[d, NULL, null] = self.null, states
            for variant in spec.variants:
                named[d, LEARNED, variant] = self.variants[variant], states
                named[d, SHUFFLED, variant] = self.variants[variant], shuffled(states)
        fitted = self._fitted(folder, named, parts)

        def entrants(split: str) -> list[Entrant]:
            return [
                entrant
                for d in self.directions
                for entrant in self._displaced(
                    d, split, shift(d, split), known[d, NULL, null], named, fitted, spec.variants
                )
            ]

        return self._score(folder, entrants, parts, seed, effect)

    def _displaced(
        self,
        d: Direction,
        split: str,
        away: Tensor,
        known: Tensors,
        named: Mapping[tuple, tuple[Steerer, States]],
        fitted: Fits,
        variants: Sequence[str],
    ) -> list[Entrant]:
        """What is asked of the planted model toward a direction: the ``named`` methods, ``fitted``, and the null scaled
        by each prompt's own number as each of ``variants`` would; ``away`` [n of the split] is how far each prompt is
        displaced along the null's ``known`` vectors.
        """
        where, null = self.null.placed(known, self.study.layer), fitted[d, NULL, self.spec.null]

        def entrant(family: str, variant: str, method: Steerer, state: Tensors, scale: Tensor | None = None) -> Entrant:
            def steering(rows: slice, a: float) -> Steering:
                planted = Displaced(self.null, known, away[rows], method, scaled(a, scale, rows))
                return Steering(planted, state, where, 1.0)

            return Entrant(d, family, variant, self.strengths if family != NONE else (0.0,), steering)

        found = [entrant(NONE, "", self.null, null)]
        found += [
            entrant(family, variant, method, fitted[way, family, variant])
            for (way, family, variant), (method, _) in named.items()
            if way == d
        ]
        for variant in variants:
            scale = self.variants[variant].own_scale(self.states(d, split), null)
            found.append(entrant(OWN, variant, self.null, null, scale))
        return found


def scaled(strength: float, scale: Tensor | None, rows: slice) -> float | Tensor:
    """A strength, or with a ``scale`` [n of a split] that of each of some ``rows``."""
    return strength if scale is None else strength * scale[rows]


def moved(states: States, shift: Tensor, null: Steerer, known: Tensors) -> States:
    """The states of a displaced model: of all three prompts of a sample by its own displacement."""
    away = displaced(states.base, shift, null, known, Context(0)) - states.base
    return replace(states, base=states.base + away, toward=states.toward + away, away=states.away + away)


def shuffled(states: States) -> States:
    """The same states with the measured numbers exchanged among the prompts of each task."""
    rng, order = torch.Generator().manual_seed(states.seed), torch.arange(len(states.base))
    for task in dict.fromkeys(states.tasks):
        own = torch.tensor([i for i, t in enumerate(states.tasks) if t == task])
        order[own] = own[torch.randperm(len(own), generator=rng)]
    return replace(states, measured={name: values[order] for name, values in states.measured.items()})
