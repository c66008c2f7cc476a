"""Methods that train the model itself on the training prompts, so that they stand in the table of those that do not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from factory import progress
from factory.faults import concerning
from factory.run import inputs
from factory.run.methods.study import Study
from factory.steer import LogitsMethod, TrainedMethod
from factory.steer.base import Direction, Tensors, sound
from factory.stopwatch import part


def train_methods(study: Study, methods: Mapping[str, LogitsMethod]) -> str | None:
    """Train those of the ``methods`` that are to be trained, toward every direction of the recipe; returns the digest
    of what they learnt from, None where there are none."""
    own = {label: m for label, m in methods.items() if isinstance(m, TrainedMethod)}
    if not own:
        return None
    nodes = [inputs.with_code(node) for node in study.recipe.steering if node.label in own]
    directions = study.recipe.evaluate.directions
    stage = study.folder.stage("train", {**study.inputs, "methods": nodes, "directions": directions})
    asked = [(label, direction) for label in own for direction in directions]
    work = {f"{label}-{way}": partial(_train, study, label, own[label], way) for label, way in asked}
    for (label, direction), state in zip(asked, progress.gather(stage, work), strict=True):
        own[label].trained[direction] = state
    if not stage.done:
        stage.finish({"trained": sorted(work)})
    return stage.digest


def _train(study: Study, label: str, method: TrainedMethod, direction: Direction) -> Tensors:
    told = f"steering '{label}' toward {direction}"
    with concerning(told), part("fit", label):
        return sound(trained_on(study, method, direction), f"{told}: train")


def trained_on(study: Study, method: TrainedMethod, direction: Direction) -> Tensors:
    """What ``method`` learns from the training prompts with their answers toward ``direction`` and toward the other
    source, in every form."""
    b, other = study.benchmark, study.benchmark.sources.other(direction).name
    asked = [(s, form) for s in study.samples["train"] for form in b.forms]
    wanted, unwanted = ([b.example(s, form, way) for s, form in asked] for way in (direction, other))
    return method.train(study.view, wanted, unwanted, study.recipe.seed)
