"""A stage's work, batch by batch: what is stored is read, what is missing is computed under a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from factory.run import progress
from factory.run.rundir import Stage

Batch = TypeVar("Batch")


def computed(stage: Stage, batches: Sequence[tuple[str, Batch]], compute: Callable[[Batch], Any]) -> list[Any]:
    """The values of all ``batches`` (key, batch) in order."""
    missing = set(stage.missing([key for key, _ in batches]))
    if not missing:
        progress.skipped(stage.name)
        return [stage.chunk(key, lambda b=batch: compute(b)) for key, batch in batches]
    out = []
    with progress.stage(stage.name, len(batches), len(batches) - len(missing)) as bar:
        for key, batch in batches:
            out.append(stage.chunk(key, lambda b=batch: compute(b)))
            bar.advance(key in missing)
    return out
