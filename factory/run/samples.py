"""The samples of a run: those that cannot be used are left out, counted and named, before anything heavy starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.model.encode import Writing

SPLITS = ("train", "dev", "test")


def fault(sample: ConflictSample, writing: Writing | None = None) -> str | None:
    """Why a sample cannot be scored, or None; with a model's ``writing`` also where a text spells one of its special tokens."""
    for field in ("context", "question", "answer_vision", "answer_text"):
        text = getattr(sample, field)
        if not text.strip():
            return f"its {field} is empty"
        if writing and (spelt := writing.reserved(text)):
            return f"its {field} spells the model's special token '{spelt}'"
    try:
        sample.load_image()
    except OSError as error:
        return f"its image cannot be read: {error}"
    return None


def thin(samples: Sequence[ConflictSample], limit: int | None) -> list[ConflictSample]:
    """At most ``limit`` samples, evenly spread over the sequence (and so over tasks)."""
    if limit is None or limit >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // limit] for i in range(limit)]


def check_share(skipped: Sequence[dict[str, Any]], total: int, allowed: float) -> None:
    """Raises ``UserError`` when more than a share ``allowed`` of ``total`` samples is unusable."""
    if total == 0 or len(skipped) > allowed * total:
        first = f"; the first: {skipped[0]['sample']}: {skipped[0]['reason']}" if skipped else ""
        raise UserError(f"{len(skipped)} of {total} samples cannot be used, more than evaluate.max_skipped={allowed:g} allows{first}")
