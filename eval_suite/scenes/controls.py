"""Drawn conflicts without the conflict: what tells what an answer to them means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Literal

from eval_suite.conflict import blank
from eval_suite.scenes.language import write_context
from eval_suite.scenes.world import ANSWERS
from factory.data.sample import ConflictSample
from factory.registry import Params

Control = Literal["none", "matching", "irrelevant", "blank"]


class ControlParams(Params):
    """``control``: what is asked in place of the conflicts: contexts that say what the picture shows (matching), those
    of scenes of other things (irrelevant), or a white picture (blank).
    """

    control: Control = "none"


def controlled(samples: Sequence[ConflictSample], control: Control, split: str) -> list[ConflictSample]:
    """The samples as a control has them; questions, answers and ids stay as they are."""
    if control == "matching":
        return [replace(s, context=_matching(s, split)) for s in samples]
    if control == "irrelevant":
        return [replace(s, context=_of_another(samples, i)) for i, s in enumerate(samples)]
    if control == "blank":
        return [replace(s, load_image=partial(blank, s.load_image)) for s in samples]
    return list(samples)


def _matching(sample: ConflictSample, split: str) -> str:
    """A context in the wording of the sample's tier that claims what the picture shows."""
    rng = Random(f"matching/{sample.id}")
    shown, other = sample.answer_vision, sample.answer_text
    decoys = tuple(a for a in ANSWERS[sample.task] if a not in (shown, other))
    subject, tier = str(sample.tags["subject"]), int(sample.tags["text_tier"])
    return write_context(sample.task, subject, shown, tier, split, rng, decoys)


def _of_another(samples: Sequence[ConflictSample], i: int) -> str:
    """The context of a sample of another task about another thing, which says nothing of what is asked: half of all
    samples on, or the next such. Among few there may be none, and the context is empty.
    """
    n, own = len(samples), samples[i]
    others = (samples[(i + n // 2 + step) % n] for step in range(n))
    apart = (s for s in others if s.task != own.task and s.tags["subject"] != own.tags["subject"])
    return next((s.context for s in apart), "")
