"""The largest batch that fits: by a plan's count of memory, and on a device that runs out of it by halving."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

from factory.blame import blaming
from factory.errors import UserError
from factory.model.load import device_for, outline
from factory.plain import say
from factory.recipe import Recipe
from factory.run.plan.estimate import Estimate, estimate, memory
from factory.terminal import warn

KEPT_FREE = 0.2  # of the memory that is free: libraries, fragments, other programs
T = TypeVar("T")


def with_batch(recipe: Recipe, rows: int) -> Recipe:
    """The recipe with ``rows`` prompts at once, in collecting and in evaluating."""
    changed = {key: getattr(recipe, key).model_copy(update={"batch_size": rows}) for key in ("collect", "evaluate")}
    return recipe.model_copy(update=changed)


def largest_batch(recipe: Recipe, limit: int | None = None, free: float | None = None) -> int:
    """How many prompts at once fit into ``free`` bytes (None: what the device has free, less a fifth): a power of two,
    no more than a split has.

    Raises ``UserError`` for a recipe that steers nothing, and where the model or the samples are not here.
    """
    if not recipe.data or recipe.train or recipe.tune or recipe.compare:
        raise UserError("--batch auto: finds the batch of recipes that steer; a tuning is cut by tune.micro_batch")
    if recipe.launch.processes > 1 or recipe.launch.hostfile:
        raise UserError("--batch auto: is for one process; leave launch.processes at 1, or name the batch sizes")
    found = estimate(recipe, limit)
    tokens = _tokens(recipe, found)
    if found.model is None or tokens is None or not found.data.prompts:
        why = found.missing[0] if found.missing else "the lengths of its prompts are not known"
        raise UserError(f"--batch auto: {why}")
    room = _free(recipe) if free is None else free
    rows = 2 ** math.ceil(math.log2(max(found.data.prompts.values())))
    while rows > 1 and memory(with_batch(recipe, rows), found.model, tokens, found.data.prompts) > room:
        rows //= 2
    return rows


def fitted_batch(recipe: Recipe, limit: int | None = None) -> tuple[Recipe, int]:
    """The recipe, and how many prompts at once fit, which is told. Raises as ``largest_batch`` does."""
    with blaming(recipe):
        rows = largest_batch(recipe, limit)
    say(f"batch: {rows} prompts at once, in collecting and in evaluating")
    return recipe, rows


def _tokens(recipe: Recipe, found: Estimate) -> tuple[int, int] | None:
    """Of a usual prompt and of the longest, by the tokenizer where it is here."""
    if not found.data.prompt or found.lacking:
        return found.tokens
    usual = outline(recipe.model).encode([found.data.prompt]).input_ids.shape[1]
    return usual, math.ceil(usual * max(1.0, found.data.longest / found.data.words))


def _free(recipe: Recipe) -> float:
    device = device_for(recipe.model.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return (1 - KEPT_FREE) * free


def halving(recipe: Recipe, rows: int, run: Callable[[Recipe], T]) -> T:
    """What ``run`` returns of the recipe with ``rows`` prompts at once, or with half of them, and half of those, for as
    long as the device runs out of memory. A run goes on with what it finished at that size, and begins other stages
    anew. Raises ``UserError`` where one prompt is too many.
    """
    while True:
        try:
            return run(with_batch(recipe, rows))
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise UserError("--batch auto: the device has too little memory for one prompt") from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows //= 2
        warn(f"--batch auto: out of memory; going on with {rows} prompts at once")
