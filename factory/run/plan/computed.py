"""The time of a run by operations and bytes, for a device that need not be here and a model whose weights need not be.

Where the model's tokenizer and the samples are here and it is small enough, a stand-in with random weights is rehearsed
(``standin``). Otherwise the counted passes and tokens are turned into time by the model's sizes alone; then what the
processor does beside, checking samples and making the report, is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import process_time

from factory.errors import UserError
from factory.model.source import Wanted
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.run.plan.blocks import Sizes
from factory.run.plan.devices import DEVICES, Device
from factory.run.plan.estimate import Estimate
from factory.run.plan.processor import processor
from factory.run.plan.rehearse import Rehearsal, rehearse
from factory.run.plan.standin import Computed, stand_in
from factory.run.plan.work import Expected, Method

END_TOKENS = 12  # of an instruction and the template after it, about
UNCOUNTED = ("check", "report")  # the processor's work alone


@dataclass(frozen=True)
class ByFormula:
    """Seconds of counted stages, of prompts of so many ``tokens``; of what the processor does beside nothing is known,
    fits aside, which were done on as many random states just now."""

    device: Device
    sizes: Sizes
    recipe: Recipe
    methods: Mapping[str, Method]
    prompt_tokens: int
    longest: int
    beside: Sequence[Expected] = field(default_factory=list)

    def of(self, stage: Expected) -> float:
        """Seconds of a stage; not a number where they are not known."""
        if stage.name in UNCOUNTED:
            return math.nan
        collecting = stage.name == "collect" or stage.name.startswith("diagnose")
        most = self.recipe.collect.batch_size if collecting else self.recipe.evaluate.batch_size
        rows, tokens, sizes = min(most, max(1, stage.prompts or stage.asked)), self.prompt_tokens, self.sizes
        whole = sizes.prompts(self.device, rows, tokens) / rows
        seen = sizes.images(self.device, rows, sizes.image_tokens) / rows
        seconds = (stage.trunk + stage.hidings) * whole + stage.trunk * seen
        seconds += (stage.cells + stage.looks) * stage.share * whole
        seconds += sizes.answers(self.device, rows, stage.tokens / rows, tokens)
        if stage.name in ("diagnose", "collect"):
            seconds += stage.prompts / rows * sizes.depth * sizes.block(self.device, 3 * rows, END_TOKENS, tokens)
        if stage.diagnosed:
            held = math.ceil(given(self.recipe.diagnostic).make().rows_held(rows))
            once = sizes.block(self.device, held, 1, tokens) + sizes.backward(self.device, held, 1, tokens)
            seconds += stage.diagnosed / rows * sizes.depth * once
        return seconds + self._fitted(stage)

    def _fitted(self, stage: Expected) -> float:
        seconds = 0.0
        for (what, label), n in stage.parts.items():
            if what == "fit":
                own = self.methods[label].fit_seconds
                seconds += math.nan if own is None else n * own
            elif what == "calibration":
                seconds += n * self.methods[label].calibration_seconds
        return seconds


@dataclass(frozen=True)
class ComputedTime:
    """A run's time as computed, and what has to be said of it."""

    time: Rehearsal | ByFormula
    told: Sequence[str]

    @property
    def whole(self) -> bool:
        """Whether everything that the run does is in it."""
        return isinstance(self.time, Rehearsal)


def device_named(name: str, sizes: Sizes, tokens: int) -> Device:
    """The device that a plan is asked for; the processor at hand is measured on so many ``tokens`` of the model's."""
    return processor(sizes, tokens) if name == "cpu" else DEVICES[name]


def compute(
    recipe: Recipe, found: Estimate, name: str, model: Wanted, limit: int | None = None, waited: float = 0.0
) -> ComputedTime | None:
    """The time of a comparison on the device of this ``name``; None where not even a prompt's length is known."""
    if found.model is None:
        return None
    sizes = Sizes.of(found.model)
    device = device_named(name, sizes, recipe.evaluate.batch_size * (found.prompt_tokens or 100))
    told = [f"computed, not measured: {device.told(sizes.dtype)}"]
    try:
        if not found.data.prompt:
            raise UserError("there are no samples here")
        began = process_time()
        view = stand_in(model)
    except UserError as why:
        if found.tokens is None:
            return None
        told.append(
            f"from sizes and counts alone, as {why}: answers as long as they may be, and without check and report"
        )
        of = {m.label: m for m in found.methods}
        return ComputedTime(ByFormula(device, sizes, recipe, of, *found.tokens), told)
    waited += process_time() - began
    clock = Computed(device, sizes)
    with clock.watching(view):
        done = rehearse(recipe, view, found.methods, limit, clock)
    done.seconds["check", ("start", "")] = waited
    answers = "as long as they may be" if (n := view.answer_tokens) is None else f"of {n} tokens, as its card says"
    told.append(
        "what runs was seen on random weights of the model's sizes, on"
        f" {done.prompts} prompts of about {done.prompt_tokens} tokens; answers {answers}; what is not the model's"
        " blocks or vision tower was timed on this processor"
    )
    return ComputedTime(done, told)
