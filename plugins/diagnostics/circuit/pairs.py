"""The two runs of each conflict: as it is, and with its picture or its context exchanged for the one that agrees.

The picture is the benchmark's own with the text's answer on it where it can make one, else that of another sample with
the same question. The context is the same with the picture's answer in the place of the text's. Both runs have the same
tokens in the same places, but for what was exchanged; what does not is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from factory.bench import Bench
from factory.data.prompt import Prompt, Role
from factory.data.sample import ConflictSample
from factory.instruments.answers import Dictionary, Pair
from factory.model.encode import Encoded
from factory.model.view import ModelView

Exchanged = Literal["picture", "context", "zero", "mean"]


@dataclass(frozen=True)
class Twin:
    """One form of one sample: its ``clean`` prompt, the ``corrupted`` one (None where no prompt is exchanged), and what
    begins its two answers, the picture's first."""

    sample: ConflictSample
    form: str
    clean: Prompt
    corrupted: Prompt | None
    answers: Pair


def twins(
    bench: Bench, samples: Sequence[ConflictSample], pool: Sequence[ConflictSample], how: Exchanged, words: Dictionary
) -> tuple[list[Twin], list[tuple[ConflictSample, str, str]]]:
    """Every form of some samples as a pair of runs, and those that are left out: sample, form, and why. ``pool``: whose
    pictures may stand in."""
    found: list[Twin] = []
    without: list[tuple[ConflictSample, str, str]] = []
    for sample in samples:
        for form in bench.benchmark.forms:
            answers = words.pair(*(bench.benchmark.answer(sample, form, d) for d in ("vision", "text")))
            clean = bench.benchmark.prompt(sample, form)
            other = _exchanged(bench, sample, clean, pool, how)
            why = next((x for x in (answers, other) if isinstance(x, str)), None)
            if why is None and isinstance(other, Prompt) and not _aligned(bench.view, clean, other):
                why = "the two runs have other tokens"
            if why is None and not isinstance(answers, str) and not isinstance(other, str):
                found.append(Twin(sample, form, clean, other, answers))
            else:
                without.append((sample, form, str(why)))
    return found, without


def _exchanged(
    bench: Bench, sample: ConflictSample, clean: Prompt, pool: Sequence[ConflictSample], how: Exchanged
) -> Prompt | None | str:
    """The corrupted prompt, None where none is needed, or why there is none."""
    if how in ("zero", "mean"):
        return None
    if how == "context":
        pattern = re.compile(rf"\b{re.escape(sample.answer_text)}\b", re.IGNORECASE)
        changed = [
            replace(s, text=pattern.sub(sample.answer_vision, s.text)) if s.role == Role.CONTEXT else s
            for s in clean.segments
        ]
        told = [s.text for s in clean.segments] != [s.text for s in changed]
        return Prompt(tuple(changed)) if told else "its context does not name its answer"
    if len(clean.images) != 1:
        return "it has not one picture"
    picture = bench.benchmark.picture_with(sample, sample.answer_text) or _stand_in(sample, pool)
    if picture is None:
        return "no picture shows the text's answer"
    return Prompt(tuple(replace(s, image=picture) if s.image is not None else s for s in clean.segments))


def _stand_in(sample: ConflictSample, pool: Sequence[ConflictSample]) -> Image.Image | None:
    """The picture of the first other sample with the same question whose picture answers as this one's text does."""
    alike = lambda s: s.id != sample.id and s.question == sample.question and s.answer_vision == sample.answer_text
    return next((s.load_image() for s in pool if alike(s)), None)


def _aligned(view: ModelView, a: Prompt, b: Prompt) -> bool:
    """Whether two prompts have tokens of the same roles in the same places, and the same ones where neither picture nor
    context stands."""
    one, two = _tokens(view, a), _tokens(view, b)
    free = (int(Role.IMAGE), int(Role.CONTEXT))
    return one.roles == two.roles and all(
        i == j or role in free for i, j, role in zip(one.ids, two.ids, one.roles, strict=True)
    )


def _tokens(view: ModelView, prompt: Prompt) -> Encoded:
    return view.tokens([prompt], view.images_of([prompt])[1])[0]
