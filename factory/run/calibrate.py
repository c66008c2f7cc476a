"""Timing a few real prompts on the model of a recipe, to turn counted work into seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from factory.data.prompt import Prompt
from factory.model.load import device_for
from factory.model.prefix import at_last, greedy, new_cache, prefill
from factory.model.replay import replay
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.schema import ModelSpec
from factory.run.collect import ASKS, Plan, collect
from factory.run.estimate import Method, Stage, timed
from factory.run.samples import thin
from factory.run.study import make
from factory.steer.sweep import run_trunk
from factory.train.lessons import IGNORE, Collator, Lessons

PROMPTS_WITHIN = ((0.25, 32), (2.0, 8))  # seconds of one prompt's forward, and how many prompts are then timed together
ADAM_COPIES = 4  # of each parameter: itself, its gradient and Adam's two moments


@dataclass(frozen=True)
class Calibration:
    """Seconds measured on the model itself, per prompt: ``forward``, ``upper`` (the blocks above the site), ``collect`` by number of
    diagnosed wordings, and per ``token``; tokens of a prompt, and the share ``answered`` of the longest answer allowed that is decoded."""

    prompts: int
    prompt_tokens: int
    forward: float
    upper: float
    token: float
    answered: float
    collect: dict[int, float]

    def seconds(self, stage: Stage, methods: Sequence[Method], directions: int) -> float:
        if stage.fits:
            return sum(m.fit_seconds * m.variants * directions for m in methods)
        if stage.collects:
            return stage.prompts * self.collect[stage.diagnosed // stage.prompts]
        return (stage.trunk + stage.hidings) * self.forward + (stage.cells + stage.looks) * self.upper + stage.tokens * self.answered * self.token


def too_small(spec: ModelSpec, needed: int) -> str | None:
    """Why the device cannot hold ``needed`` bytes, or None; a model that accelerate spreads out may have room elsewhere."""
    device = device_for(spec.device)
    if device.type != "cuda" or spec.device_map:
        return None
    there = torch.cuda.get_device_properties(device).total_memory
    return f"{device} has {gigabytes(there)} of memory, the run needs about {gigabytes(needed)}" if needed > there else None


def calibrate(recipe: Recipe, view: ModelView, layer: int) -> Calibration:
    """Time some training prompts on the model: the faster it is the more, up to the evaluation's batch."""
    benchmark = make(recipe.data)
    samples = thin(benchmark.samples("train"), min(PROMPTS_WITHIN[0][1], recipe.evaluate.batch_size))
    prompts = [benchmark.prompt(s, benchmark.forms[0]) for s in samples]
    prefilled(view, prompts[:1])
    _, first = timed(lambda: prefilled(view, prompts[:1]), view.device)
    prompts = prompts[: next((n for seconds, n in PROMPTS_WITHIN if first < seconds), 1)]
    (logits, prefix), forward = timed(lambda: prefilled(view, prompts), view.device)
    with torch.no_grad():
        trunk = run_trunk(view, view.encode(prompts), layer)
        _, upper = timed(lambda: replay(view, layer, trunk.call, trunk.states, new_cache()), view.device)
        answer, decoding = timed(lambda: greedy(view, prefix, logits, recipe.evaluate.max_new_tokens), view.device)
    diagnostic = make(recipe.diagnostic) if recipe.diagnostic else None
    keys = [s.id for s in samples[: len(prompts)]]
    collected = {}
    for asks in ([ASKS[:1], ASKS] if diagnostic else [()]):
        how = Plan(layer, recipe.collect.position, recipe.collect.instructions, asks)
        collected[len(asks)] = timed(lambda how=how: collect(view, prompts, how, diagnostic, keys), view.device)[1] / len(prompts)
    n = len(prompts)
    length = int(prefix.next_position.sum()) // n
    steps = answer.shape[1]
    return Calibration(n, length, forward / n, upper / n, decoding / max(1, steps - 1) / n, steps / recipe.evaluate.max_new_tokens, collected)


@torch.no_grad()
def prefilled(view: ModelView, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, Any]:
    batch = view.encode(prompts)
    hidden, prefix = prefill(view, batch)
    return view.logits(at_last(hidden, batch.attention_mask)), prefix


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
    spec, benchmark, threads = recipe.train, make(recipe.data), torch.get_num_threads()
    torch.set_num_threads(spec.threads or threads)
    view.model.requires_grad_(True).train()
    try:
        tower = lambda pixels: _backward(view.vision_tower(pixels).last_hidden_state)
        connector = lambda pixels: _backward(view.connector(view.vision_tower(pixels).last_hidden_state.detach()))
        phases = [_pictures("vision", view, benchmark, spec.vision_steps, 2 * spec.batch_size, tower)] if spec.vision_steps else []
        if spec.text_steps:
            phases.append(_lessons("text", view, benchmark.text_lesson, spec.text_steps, spec.batch_size))
        if spec.connector_steps:
            phases.append(_pictures("connector", view, benchmark, spec.connector_steps, 2 * spec.batch_size, connector))
        return [*phases, _lessons("train", view, benchmark.lesson, spec.steps, spec.batch_size)]
    finally:
        torch.set_num_threads(threads)
        view.model.zero_grad()
        view.model.eval().requires_grad_(False)


def _pictures(name: str, view: ModelView, benchmark: Any, steps: int, rows: int, learn: Callable[[torch.Tensor], torch.Tensor]) -> Phase:
    images = [benchmark.picture(steps // 2 * rows + i, steps * rows)[0] for i in range(rows)]
    pixels = view.family.image_inputs(view.processor, images)["pixel_values"]
    states, seconds = timed(lambda: learn(pixels), view.device)
    tokens = states.shape[0] * states.shape[1]
    return Phase(name, steps, rows, tokens, tokens, seconds)


def _backward(states: torch.Tensor) -> torch.Tensor:
    states.sum().backward()
    return states


def _lessons(name: str, view: ModelView, draw: Callable[[int, int, int], Prompt], steps: int, rows: int) -> Phase:
    lessons = Lessons(draw, rows, steps)
    batch = Collator(view)([lessons[steps // 2 * rows + i] for i in range(rows)])
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "text_labels")}

    def step() -> None:
        logits = view.model(**inputs).logits[:, :-1].float().transpose(1, 2)
        torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:], ignore_index=IGNORE).backward()

    _, seconds = timed(step, view.device)
    return Phase(name, steps, rows, int(batch["attention_mask"].sum()), batch["input_ids"].numel(), seconds)


def training_memory(view: ModelView, phases: Sequence[Phase]) -> int:
    """Bytes, about: weights, gradients and Adam's moments in float32, and the activations of the largest batch."""
    kept = view.depth * (12 * view.width + 4 * view.text_config.intermediate_size) + 3 * view.text_config.vocab_size
    return 4 * (ADAM_COPIES * sum(p.numel() for p in view.model.parameters()) + max(p.padded for p in phases) * kept)


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"
