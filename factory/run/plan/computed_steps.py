"""The time of a tuning by operations and bytes, seen on a stand-in of the model (``standin``).

It is the tuning itself for a few optimiser steps, with a look and a checkpoint, in a folder of its own that is gone
afterwards. Each part is timed and counted; what the model's blocks and its vision tower take is computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from copy import copy
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

from factory.model.facts import ModelFacts
from factory.model.source import Wanted
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.recipe.schema import TuneSpec
from factory.run.inputs import running_digest
from factory.run.plan.blocks import Sizes
from factory.run.plan.computed import device_named
from factory.run.plan.devices import OPERATIONS, Device
from factory.run.plan.standin import Computed, stand_in
from factory.run.rundir import RunDir
from factory.run.timing import timed
from factory.run.tuners.checked import examiner
from factory.run.tuners.exam import answerer
from factory.run.tuners.held_out import Held, learnt_and_held
from factory.run.tuners.opening import Opened
from factory.run.tuners.tuning import EXAM_BATCH, TUNED, tune_on
from factory.stopwatch import Stopwatch, chunk
from factory.train.loop import Shape
from factory.train.marks import CYCLES

STEPS, QUESTIONS, EXAMINED = 4, 8, 2  # that are done: steps, questions of a look, samples of a task of an examination
MEASURED_ON = 2**12  # tokens, of a processor
READ_AND_WRITTEN, KERNELS = 21, 8  # by AdamW: values for each trained one, and operations for each tensor
CLIPPED, CLIPS = 3, 2  # the same of the gradients' norm and their scaling


@dataclass(frozen=True)
class Stepped:
    """What an optimiser steps over: ``tensors`` of so many ``numbers`` in all, ``share`` of the blocks' weights."""

    tensors: int
    numbers: int
    share: float

    @classmethod
    def of(cls, view: ModelView, sizes: Sizes) -> Stepped:
        learning = [p for p in view.model.parameters() if p.requires_grad]
        inside = sum(p.numel() for p in view.decoder.parameters() if p.requires_grad)
        return cls(len(learning), sum(p.numel() for p in learning), min(1.0, inside / (sizes.linear * sizes.depth)))

    def seconds(self, device: Device, values: int, kernels: int) -> float:
        """Of as many operations over all tensors at once, that read and write so many float32 values of each number."""
        at_once = device.call / OPERATIONS
        return max(4 * values * self.numbers / (device.bandwidth * device.memory_share), kernels * at_once)


@dataclass(frozen=True)
class Work:
    """How often each part of a tuning is done. Of a step ``batches``, ``looked`` of a look, ``questions`` of a look."""

    steps: int
    batches: int
    checkpoints: int
    looks: int = 0
    looked: int = 0
    questions: int = 0
    exam: int = 0

    @classmethod
    def of(cls, spec: TuneSpec, shape: Shape, steps: int, aside: int, held: Held | None) -> Work:
        """Of so many ``steps``, where patience does not end them earlier, with ``aside`` samples held out."""
        batches, kept = shape.accumulate * shape.ranks, spec.save_every
        if held is None:
            return cls(steps, batches, -(-steps // kept), exam=spec.exam or 0)
        looks, samples = -(-steps // held.spec.every), len(held.source) if held.source else aside
        kept = held.spec.every if held.spec.keep == "best" else kept
        questions = len(held.suite.items) if held.suite else 0
        return cls(steps, batches, -(-steps // kept), looks, -(-samples // shape.micro), questions, exam=spec.exam or 0)

    @property
    def parts(self) -> dict[str, int]:
        """Times of each part, in the order in which a table shows them."""
        batches = self.steps * self.batches
        return {
            "begin and end": 1,
            "read": batches,
            "pass": batches,
            "clip": self.steps,
            "update": self.steps,
            "step": self.steps,
            "checkpoint": self.checkpoints,
            "look": self.looks * self.looked,
            "score": self.looks * self.questions,
            "exam": self.exam,
        }


@dataclass(frozen=True)
class TuningTime:
    """Seconds of each part of a tuning for each time that it is done, its ``work``, and what to say of them."""

    work: Work
    seconds: Mapping[str, float]
    told: list[str]

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part in all."""
        return {name: n * self.seconds[name] for name, n in self.work.parts.items() if n}


def compute_tuning(
    recipe: Recipe,
    name: str,
    facts: ModelFacts,
    model: Wanted,
    source: Opened,
    trained: Stepped,
    steps: int,
    held: Held | None,
) -> TuningTime:
    """The time of so many ``steps`` of a tuning and of all around them, on the device of this ``name``. Raises
    ``UserError`` where no stand-in can be built."""
    spec, sizes = given(recipe.tune), Sizes.of(facts)
    shape, begun = Shape.of(spec, recipe.launch.processes), process_time()  # what it took to get here, a run takes too
    device = device_named(name, sizes, MEASURED_ON)
    view, loading = timed(lambda: stand_in(model), clock=process_time)
    clock = Computed(device, sizes)
    few, watch = few_of(recipe, shape, device), Stopwatch(clock, lambda: None)
    small = few_held(held, few, shape.micro) if held else None
    with (
        clock.watching(view, trained.share + spec.gradient_checkpointing),
        redirect_stdout(StringIO()),
        redirect_stderr(StringIO()),
    ):
        with watch.running():
            _tuned(few, view, source, small)
        examined = _examined(spec, view, clock)
    _, aside = learnt_and_held(spec, source)
    seconds = defaultdict(float, _each(watch))
    seconds["begin and end"] += begun + loading
    asked = len(small.suite.items) if small and small.suite else 1
    seconds |= {"score": seconds["score"] / asked, "exam": examined}
    if not device.measured:
        seconds["update"] = trained.seconds(device, READ_AND_WRITTEN, KERNELS)
        seconds["clip"] = trained.seconds(device, CLIPPED, CLIPS)
    told = [
        f"computed, not measured: {device.told(sizes.dtype)}",
        (
            "steps were done on random weights of the model's sizes; what is not its blocks or vision tower was timed"
            " on this processor, in one process"
        ),
        f"a step of the optimiser goes over {trained.tensors:,} tensors of {trained.numbers:,} numbers",
    ]
    return TuningTime(Work.of(spec, shape, steps, len(aside), held), seconds, told)


def few_of(recipe: Recipe, shape: Shape, device: Device) -> Recipe:
    """The recipe with a few steps of one micro-batch in one process, a look and a checkpoint after the last of them.
    Blocks that would be computed again in the backward pass are not: that pass is computed, not done. Half precision
    is the device's affair too, where that is not here."""
    spec = given(recipe.tune)
    held = spec.held_out and spec.held_out.model_copy(update={"every": STEPS, "patience": None})
    few: dict[str, Any] = {"batch_size": shape.micro, "micro_batch": shape.micro, "steps": STEPS, "save_every": STEPS}
    few |= {"held_out": held, "initial": None, "gradient_checkpointing": False}
    few |= {} if device.measured else {"bf16": False, "fp16": False}
    few["data"] = spec.data.model_copy(update={"workers": 0, "cache_features": False})
    alone = recipe.launch.model_copy(update={"processes": 1, "zero": 0, "offload": ()})
    quiet = recipe.report.model_copy(update={"also": ()})
    return recipe.model_copy(update={"tune": spec.model_copy(update=few), "launch": alone, "report": quiet})


def few_held(held: Held, few: Recipe, samples: int) -> Held:
    """What is held out, of which a look sees so many ``samples`` and questions."""
    suite = copy(held.suite)
    if suite:
        suite.items = suite.items[:QUESTIONS]
    return replace(held, spec=given(given(few.tune).held_out), suite=suite, most=samples)


def _tuned(recipe: Recipe, view: ModelView, source: Opened, held: Held | None) -> None:
    told = recipe.source_path or Path(f"{recipe.name}.yaml"), recipe.text, recipe.resolved()
    with (
        TemporaryDirectory(prefix="steering-factory-") as root,
        RunDir.open(Path(root), recipe.name, *told) as folder,
        chunk("tune", ""),
    ):
        name = running_digest(view)
        tune_on(recipe, folder, "tune", source, name, lambda: view, folder.path / TUNED, held=held)


def _examined(spec: TuneSpec, view: ModelView, clock: Computed) -> float:
    """Seconds of an examination for each sample of a task."""
    if not spec.exam:
        return 0.0
    benchmark, samples = examiner(spec), min(EXAMINED, spec.exam)
    ask = answerer(view, benchmark, EXAM_BATCH)
    return timed(lambda: benchmark.examine(ask, samples), clock=clock)[1] / samples


def _each(watch: Stopwatch) -> dict[str, float]:
    """Seconds of each part each time: those of a step are the median's of all after the first, what the first took
    beyond them and what comes after the last lies in the beginning and the end."""
    cycles: defaultdict[str, dict[str, float]] = defaultdict(dict)
    once, ends = 0.0, {}
    for ((stage, key), (what, label)), took in watch.seconds.items():
        if stage == CYCLES:
            cycles[key]["step" if what == CYCLES else what] = took
        else:
            once += took
    last = cycles.pop(str(STEPS))
    ends = {what: took for what, took in last.items() if what in ("look", "score", "checkpoint")}
    first = cycles.pop("0")
    usual = {what: median(cycle[what] for cycle in cycles.values()) for what in first}
    once += sum(max(0.0, first[what] - usual[what]) for what in first)
    once += sum(last.values()) - sum(ends.values())
    return {**usual, **ends, "begin and end": once}
