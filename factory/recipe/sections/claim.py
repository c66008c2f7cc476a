"""`claim:`: whether scaling a steering method by a measured number helps, tested on several draws of the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from factory.recipe.nodes import Node, Spec, distinct, distinct_labels, plugin
from factory.recipe.sections.words import Seed, Text

Share = Annotated[float, Field(gt=0, le=1)]


class PlantedSpec(Spec):
    """The positive control: models in which the strength that a prompt needs does depend on its measured number.

    Block ``collect.layer`` of such a model gives h - effect * alpha * (s - 1) * g(h) for h, where s is the scale of the
    variant ``law`` by the prompt's own number, g and alpha the null's vector and its strength chosen on dev. A scale of
    1 + effect * (s - 1) is then right. ``effects`` are tried one by one; ``variants`` are those among which dev chooses
    besides the null, once fitted on the true numbers and once on numbers shuffled within each task. ``draws`` and
    ``scorings``: how many of the claim's are planted, the first of each.
    """

    effects: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), AfterValidator(distinct)] = (
        1.0,
        0.5,
        0.25,
        0.125,
    )
    law: Text
    variants: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(distinct)]
    draws: Annotated[int, Field(gt=0)] = 1
    scorings: Annotated[int, Field(gt=0)] = 1


class ClaimSpec(Spec):
    """Whether variants of the recipe's one steering method do better than the variant ``null``, at equal error.

    Everything is done for each of ``draws`` (seeds of ``data``), each of ``scorings`` (of ``data``) and each of
    ``seeds`` (of the fits). Dev chooses a strength for the null, and a variant other than the null with its strength;
    both are scored on test, also where dev prefers the null. ``share`` names the number that the variants scale by, the
    first source's share of something (the vision's): that of the other is what is left. Beside the learned scale stands
    the null scaled by each prompt's own number.

    ``predictors`` measure the same share in other ways, and ``asks`` under other wordings of the prompt (``toward``:
    the instruction toward the direction, ``away``: the other one), by the recipe's own ``diagnostic:``; each is held
    against which test samples the null turns (``flips``) and spoils (``breaks``), on a ``looked_at`` share of test.
    ``planted`` is the positive control.
    """

    null: Text
    share: Text
    draws: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(distinct)] = (0, 1, 2)
    scorings: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(distinct)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(distinct)] = (0, 1, 2)
    predictors: Annotated[tuple[Annotated[Node, plugin("diagnostic")], ...], AfterValidator(distinct_labels)] = ()
    asks: Annotated[tuple[Literal["toward", "away"], ...], AfterValidator(distinct)] = ()
    looked_at: Share = 1.0
    planted: PlantedSpec | None = None

    @model_validator(mode="after")
    def _plants_what_it_has(self) -> ClaimSpec:
        if self.planted and (self.planted.draws > len(self.draws) or self.planted.scorings > len(self.scorings)):
            raise ValueError("planted.draws and planted.scorings are how many of `draws` and `scorings` are planted")
        if self.planted and self.null in self.planted.variants:
            raise ValueError("planted.variants are those besides the null")
        return self
