"""Conflicts with an instruction that asks for one modality: the setting of Instruction Anchor (sec. 3.1, app. B and
C).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from factory.bench import Bench
from factory.data.instructions import Style, instruction
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.diagnose import Diagnostic, about
from factory.diagnose.summary import Finding
from factory.errors import UserError
from factory.instruments.answers import Dictionary, DictionaryParams, Pair
from factory.instruments.branch import Stem, run_stem
from factory.instruments.lens import Pool, Readout
from factory.instruments.pathways import role_sets
from factory.instruments.residual import Residuals, columns_of, residuals
from factory.model.encode import Batch
from factory.model.prefix import at_last, decode_texts, greedy, last_index
from factory.model.view import ModelView
from factory.recipe.sections.words import Direction
from factory.registry import Params

SYSTEM = (
    "You are a helpful and honest assistant who strictly follows all user instructions and provides accurate responses."
)
LEFT_OUT = "left_out"
Layout = Literal["after_format", "before_format", "before_question"]


class InstructedParams(Params):
    """How samples are asked.

    ``style`` words the instruction T_sem; the format constraint T_fmt is the benchmark's own. ``layout``: T_sem after
    T_fmt, right before it (app. C.2, swapped), or before the question (MC²). ``system`` puts a general system prompt,
    which counts as format, before both or between them (app. C.2). ``dictionary``: how answers are told.

    ``directions``: the sources that are asked for, both unless named.
    """

    style: Style = "amps_rq1"
    layout: Layout = "after_format"
    system: Literal["none", "before", "between"] = "none"
    directions: tuple[Direction, ...] = PICTURE_AND_TEXT.names
    dictionary: DictionaryParams = DictionaryParams()


@dataclass(frozen=True)
class Instructed:
    """One form of one sample with the instruction toward ``direction``, and what begins its two answers."""

    sample: ConflictSample
    form: str
    direction: str
    prompt: Prompt
    answers: Pair

    @property
    def facts(self) -> dict[str, Any]:
        """What every row about it says."""
        return {**about(self.sample, self.form, self.direction), "direction": self.direction}


@dataclass(frozen=True)
class Asked:
    """Instructed prompts, run once: ``comply`` and ``compete`` [B, K] token ids (-1 fills up), each one's
    ``outcome``.
    """

    items: Sequence[Instructed]
    stem: Stem
    comply: Tensor
    compete: Tensor
    outcomes: Sequence[str]

    @property
    def directions(self) -> list[str]:
        return [item.direction for item in self.items]

    @property
    def sources(self) -> Sources:
        """The sources that the prompts set against each other."""
        return self.items[0].prompt.sources

    @property
    def sets(self) -> dict[str, Tensor]:
        """[B, T] booleans of every token set that a pathway can name."""
        return role_sets(self.stem.batch.roles, self.stem.batch.attention_mask, self.directions, self.sources)

    def facts(self, i: int) -> dict[str, Any]:
        return {**self.items[i].facts, "outcome": self.outcomes[i]}


@dataclass(frozen=True)
class Anchor:
    """The residual stream at the n instruction tokens, ``mask`` [B, n], and, as column n, at the last prompt token."""

    found: Residuals
    mask: Tensor

    def reader(self, view: ModelView, asked: Asked, k: int, pool: Pool) -> Readout:
        """f_C and f_X of states [B, ..., n, d] at the instruction tokens."""
        return Readout(view, self.mask, asked.comply, asked.compete, k, pool)


def instruct(prompt: Prompt, segment: Segment, layout: str = "after_format", system: str = "none") -> Prompt:
    """``prompt`` with an instruction, laid out as ``InstructedParams`` says. Raises ``UserError`` for a layout beside a
    format constraint that the prompt has not."""
    segments = list(prompt.segments)
    formats = [i for i, s in enumerate(segments) if s.role == Role.OPTIONS]
    if not formats and (layout == "before_format" or system == "between"):
        raise UserError(
            "these prompts have no format constraint that an instruction or a system prompt could be put beside: use"
            " layout after_format, and system none or before"
        )
    formats = formats or [len(segments)]
    if layout == "before_question":
        segments = list(prompt.before_question(segment).segments)
    else:
        segments.insert(formats[-1] + (layout == "after_format"), segment)
    if system != "none":
        both = [i for i, s in enumerate(segments) if s is segment or s.role == Role.OPTIONS]
        segments.insert(both[0] if system == "before" else both[0] + 1, Segment(Role.OPTIONS, SYSTEM))
    return replace(prompt, segments=tuple(segments))


def instructed(
    bench: Bench, samples: Sequence[ConflictSample], params: InstructedParams, dictionary: Dictionary
) -> tuple[list[Instructed], list[dict[str, Any]]]:
    """Every sample, form and direction that the dictionary covers, and a row for each that it does not."""
    items, told_left_out, sources = [], [], bench.benchmark.sources
    for sample in samples:
        for form in bench.benchmark.forms:
            first, second = (bench.benchmark.answer(sample, form, name) for name in sources.names)
            pair = dictionary.pair(first, second)
            if isinstance(pair, str):
                told_left_out.append(
                    {
                        **about(sample, form, ""),
                        "metric": LEFT_OUT,
                        "layer": None,
                        "head": None,
                        "value": 1.0,
                        "reason": pair,
                    }
                )
                continue
            prompt = bench.benchmark.prompt(sample, form)
            for direction in params.directions:
                own = pair if direction == sources.first.name else Pair(pair.compete, pair.comply)
                whole = instruct(prompt, instruction(params.style, direction, sources), params.layout, params.system)
                items.append(Instructed(sample, form, direction, whole, own))
    return items, told_left_out


def told_left_out(rows: Sequence[Mapping[str, Any]]) -> Finding:
    """How many prompts a run left out for their dictionaries, and why."""
    why = Counter(r["reason"] for r in rows if r["metric"] == LEFT_OUT)
    text = f"{why.total()} prompts left out for their dictionaries" + (
        f" ({', '.join(f'{reason} {n}' for reason, n in sorted(why.items()))})" if why else ""
    )
    return Finding(text, values={"left_out": why.total(), **why})


@torch.no_grad()
def ask_instructed(bench: Bench, items: Sequence[Instructed]) -> Asked:
    """Run instructed prompts once, and see what the model answers."""
    return _answered(bench, items, run_stem(bench.view, bench.view.encode([item.prompt for item in items])))


@torch.no_grad()
def ask_and_look(bench: Bench, items: Sequence[Instructed]) -> tuple[Asked, Anchor]:
    """``ask_instructed``, keeping the residual stream at instruction tokens and at the last one of the same run."""
    stem, anchor = look_at(bench.view, bench.view.encode([item.prompt for item in items]))
    return _answered(bench, items, stem), anchor


@torch.no_grad()
def look_at(view: ModelView, batch: Batch) -> tuple[Stem, Anchor]:
    """Run prompts once, keeping the residual stream at instruction tokens and at the last one."""
    at, mask = columns_of(batch.mask(Role.INSTRUCTION))
    with residuals(view, torch.cat([at, last_index(batch.attention_mask)[:, None]], -1)) as found:
        stem = run_stem(view, batch)
    return stem, Anchor(found, mask)


def _answered(bench: Bench, items: Sequence[Instructed], stem: Stem) -> Asked:
    view = bench.view
    logits = view.logits(at_last(stem.hidden, stem.batch.attention_mask))
    texts = decode_texts(view, greedy(view, stem.prefix.fork(), logits, bench.max_new_tokens, bench.among))
    verdicts = [bench.benchmark.judge(item.sample, item.form, text) for item, text in zip(items, texts, strict=True)]
    return asked_of(
        view,
        items,
        stem,
        [bench.benchmark.outcome([v], item.direction) for item, v in zip(items, verdicts, strict=True)],
    )


def asked_of(view: ModelView, items: Sequence[Instructed], stem: Stem, outcomes: Sequence[str]) -> Asked:
    """Instructed prompts that have been run, with what became of each."""
    comply, compete = (padded([getattr(i.answers, name) for i in items], view) for name in ("comply", "compete"))
    return Asked(items, stem, comply, compete, outcomes)


def padded(sets: Sequence[Sequence[int]], view: ModelView) -> Tensor:
    """Token ids [B, K], -1 after each row's own."""
    width = max(map(len, sets))
    return torch.tensor([[*s, *[-1] * (width - len(s))] for s in sets], device=view.device)


def thinned(ids: Sequence[str], share: float) -> list[str]:
    """A share of some samples' ids, each taken or left by itself, so that a larger share has all of a smaller one's."""
    return [i for i in ids if int(hashlib.sha256(i.encode()).hexdigest()[:8], 16) / 2**32 < share]


class Instructing(Diagnostic):
    """Base of the diagnostics that ask every sample with an instruction toward either source."""

    Params = InstructedParams
    columned = True

    def whole_prompts(self, ids: Sequence[str]) -> int:
        return len(self.params.directions) * super().whole_prompts(ids)


class Reading(Instructing):
    """Base of the diagnostics that read instruction tokens of answered prompts; a subclass defines ``read``."""

    class Params(InstructedParams):
        """``k``: how many instruction tokens are averaged. ``pool``: the largest logit of a dictionary, or their
        mean.
        """

        k: PositiveInt = 5
        pool: Pool = "max"

    def read(self, view: ModelView, asked: Asked, anchor: Anchor) -> dict[str, Tensor]:
        """Each metric by layer [layers, B], or by layer and head [layers, heads, B]."""
        raise TypeError(f"{type(self).__name__} must define read")

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        items, rows = instructed(bench, samples, self.params, Dictionary(bench.view.tokenizer, self.params.dictionary))
        if not items:
            return rows
        asked, anchor = ask_and_look(bench, items)
        for metric, values in self.read(bench.view, asked, anchor).items():
            for i, of_prompt in enumerate(values.movedim(-1, 0).tolist()):
                named = {**asked.facts(i), "metric": metric}
                for layer, value in enumerate(of_prompt):
                    by_head = enumerate(value) if isinstance(value, list) else [(None, value)]
                    rows += [{**named, "layer": layer, "head": head, "value": float(v)} for head, v in by_head]
        return rows
