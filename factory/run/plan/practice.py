"""One batch of each phase of a training run, timed on the model itself to turn its steps into seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from factory.benchmark import WithPictures
from factory.data.prompt import Prompt
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.run.timing import own_clock, timed
from factory.run.tuners.scratch import curriculum
from factory.train.scratch.lessons import IGNORE, LessonCollator, LessonStream

ADAM_COPIES = 4  # of each parameter: itself, its gradient and Adam's two moments


@dataclass(frozen=True)
class Phase:
    """One phase of a training run: ``rows`` (prompts or pictures) a step, their ``tokens`` and those with padding, and
    seconds of one step's forward and backward, as measured on one batch."""

    name: str
    steps: int
    rows: int
    tokens: int
    padded: int
    seconds: float


def training_phases(recipe: Recipe, view: ModelView) -> list[Phase]:
    """The phases that a training run has, each measured on a batch from its middle; no weight changes."""
    spec, benchmark, threads = given(recipe.train), curriculum(recipe), torch.get_num_threads()
    torch.set_num_threads(spec.threads or threads)
    view.model.requires_grad_(True).train()
    try:
        tower = lambda pixels: _backward(view.vision_tower(pixels).last_hidden_state)
        connector = lambda pixels: _backward(view.connector(view.vision_tower(pixels).last_hidden_state.detach()))
        phases = (
            [_pictures("vision", view, benchmark, spec.vision_steps, 2 * spec.batch_size, tower)]
            if spec.vision_steps
            else []
        )
        if spec.text_steps:
            phases.append(_lessons("text", view, benchmark.text_lesson, spec.text_steps, spec.batch_size))
        if spec.connector_steps:
            phases.append(_pictures("connector", view, benchmark, spec.connector_steps, 2 * spec.batch_size, connector))
        return [*phases, _lessons("train", view, benchmark.lesson, spec.steps, spec.batch_size)]
    finally:
        torch.set_num_threads(threads)
        view.model.zero_grad()
        view.model.eval().requires_grad_(False)


def _pictures(
    name: str,
    view: ModelView,
    benchmark: WithPictures,
    steps: int,
    rows: int,
    learn: Callable[[torch.Tensor], torch.Tensor],
) -> Phase:
    images = [benchmark.picture(steps // 2 * rows + i, steps * rows)[0] for i in range(rows)]
    pixels = view.family.image_inputs(view.processor, images)["pixel_values"]
    states, seconds = timed(lambda: learn(pixels), view.device, own_clock(view.device))
    tokens = states.shape[0] * states.shape[1]
    return Phase(name, steps, rows, tokens, tokens, seconds)


def _backward(states: torch.Tensor) -> torch.Tensor:
    states.sum().backward()
    return states


def _lessons(name: str, view: ModelView, draw: Callable[[int, int, int], Prompt], steps: int, rows: int) -> Phase:
    lessons = LessonStream(draw, rows, steps)
    batch = LessonCollator(view)([lessons[steps // 2 * rows + i] for i in range(rows)])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "text_labels")}

    def step() -> None:
        logits = view.model(**inputs).logits[:, :-1].float().transpose(1, 2)
        torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:], ignore_index=IGNORE).backward()

    _, seconds = timed(step, view.device, own_clock(view.device))
    return Phase(name, steps, rows, int(batch["attention_mask"].sum()), batch["input_ids"].numel(), seconds)


def training_memory(view: ModelView, phases: Sequence[Phase]) -> int:
    """Bytes, about: weights, gradients and Adam's moments in float32, and the activations of the largest batch."""
    kept = view.depth * (12 * view.width + 4 * view.text_config.intermediate_size) + 3 * view.text_config.vocab_size
    return 4 * (ADAM_COPIES * sum(p.numel() for p in view.model.parameters()) + max(p.padded for p in phases) * kept)
