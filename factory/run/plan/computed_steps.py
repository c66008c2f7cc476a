"""The time of a tuning by operations and bytes, seen on a stand-in of the model (``standin``)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

import torch

from factory.corpus.collate import Collator
from factory.corpus.source import Source
from factory.model.facts import ModelFacts
from factory.model.source import Wanted
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.run.plan.blocks import Sizes
from factory.run.plan.computed import device_named
from factory.run.plan.standin import Computed, stand_in
from factory.run.timing import timed
from factory.train.loop import Answers, Shape
from factory.train.losses import plot_losses

TIMED_STEPS = 2


def compute_step(
    recipe: Recipe, name: str, facts: ModelFacts, model: Wanted, source: Source
) -> tuple[float, float, list[str]]:
    """Seconds of one optimiser step of a tuning, all its micro-batches in one process, those before the first and after
    the last, and what to say of them. Raises ``UserError`` where no stand-in can be built."""
    spec = given(recipe.tune)
    device, sizes = device_named(name, facts, 2**12), Sizes.of(facts)
    view, shape = stand_in(model), Shape.of(spec, recipe.launch.processes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        spec.method.make().apply(view, spec.beside, words=dict.fromkeys(spec.new_tokens))
    view.model.train()
    beside = process_time()  # what it took to get here, a run takes as well
    linear = sum(p.numel() for p in view.decoder.parameters() if p.requires_grad) / (sizes.linear * sizes.depth)
    collate, objective, clock = (
        Collator(view, source, spec.data.max_tokens, None),
        Answers(view),
        Computed(device, sizes),
    )

    def step(turn: int) -> None:
        numbers = [(turn * shape.micro + i) % len(source) for i in range(shape.micro)]
        objective(**collate(numbers)).backward()

    with clock.watching(view, min(1.0, linear)):
        each = median(timed(partial(step, i), clock=clock)[1] for i in range(1 + TIMED_STEPS))
    with TemporaryDirectory() as aside:
        log = [{"step": i, "loss": 1.0 / i, "learning_rate": 1e-3} for i in (1, 2)]
        beside += timed(lambda: plot_losses(log, recipe.name, Path(aside) / "loss.png"), clock=process_time)[1]
    told = [
        f"computed, not measured: {device.told(sizes.dtype)}",
        (
            "steps were done on random weights of the model's sizes; what is not its blocks or vision tower was timed"
            " on this processor; checkpoints and looks at what is held out come on top"
        ),
    ]
    return shape.accumulate * shape.ranks * each, beside, told
