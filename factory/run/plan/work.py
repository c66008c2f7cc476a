"""The stages of a comparison and the work of each: prompt passes, new tokens, and how often each of its parts is
done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from factory.diagnose import Diagnostic
from factory.recipe import Recipe
from factory.run.methods.cost import REPEATS, SAMPLES
from factory.run.methods.halving import pairs_asked
from factory.run.methods.share import swept_samples
from factory.steer.collect import WORDINGS
from factory.stopwatch import Part

OWN: Part = ("own", "")
"""What a stage does beside its named parts."""


@dataclass(frozen=True)
class Method:
    """One method of the comparison, as it works on each prompt.

    ``shots``: worked examples that it shows. ``rows``: prompts and copies that a method on prompts or logits runs, over
    all directions, ``again`` for each strength or once for all; ``firsts``: prompts of calls that come first, of
    ``first_answer`` tokens at most. Of a ``steerer``: ``variants`` among which dev decides; ``asks`` the prompt that it
    has for each direction, by digest; ``whole`` if a strength runs all blocks and not those above the site alone;
    ``looks`` and ``hidings``, its controller's passes ahead of the blocks above the site and, with a modality hidden,
    of all, in whole prompts; ``begun``, the share of its prompts that are run from their beginning, where others go on
    from what they share; ``weight``, the share of a prompt's tokens that a strength runs; ``trials``, the strengths
    it tries on training prompts. ``parameters`` are the fitted numbers of one variant toward one direction,
    and the seconds those of one fit. ``control``: it is a random one. ``answer``: most tokens of an answer.
    """

    label: str
    type: str | None
    place: str
    variants: int
    kind: Literal["prompt", "logits", "steerer"]
    rows: int = 0
    again: bool = False
    firsts: int = 0
    first_answer: int = 0
    asks: tuple[str, ...] = ()
    whole: bool = False
    looks: float = 0
    hidings: float = 0
    begun: float = 1.0
    weight: float = 1.0
    trials: int = 0
    unsteered: bool = False
    control: bool = False
    shots: int = 0
    parameters: int | None = None
    fit_seconds: float | None = None
    calibration_seconds: float = 0.0
    answer: int = 0

    @property
    def steers(self) -> bool:
        return self.kind == "steerer"


Count = Callable[[Method], float]


@dataclass(frozen=True)
class Expected:
    """Predicted work: ``trunk`` whole-prompt passes, ``cells`` and ``looks`` (a controller's, ahead) passes of the
    blocks above the steered one alone, ``share`` of all blocks that these are, ``hidings`` passes of all blocks without
    the images', ``tokens`` generated at most, prompts ``diagnosed`` (once for each wording), questions ``asked`` of
    every method, ``parts`` how often each part of it is done; what is in none of them is done once for each prompt.
    """

    name: str
    prompts: int
    trunk: int = 0
    cells: float = 0
    looks: float = 0
    hidings: float = 0
    share: float = 1.0
    tokens: int = 0
    diagnosed: int = 0
    fits: int = 0
    asked: int = 0
    parts: Mapping[Part, float] = field(default_factory=dict)

    @property
    def passes(self) -> float:
        return self.trunk + self.hidings + (self.cells + self.looks) * self.share

    @property
    def work(self) -> Mapping[Part, float]:
        """How often everything in it is done."""
        return {OWN: self.prompts, **self.parts}


@dataclass(frozen=True)
class Begun:
    """Share of the prompts that are run from their beginning, of those ``collected`` and those ``steered``: the forms
    of a sample go on from what they have in common (``factory.model.alike``)."""

    collected: float = 1.0
    steered: float = 1.0


ALL = Begun()


def stages(
    recipe: Recipe,
    ids: Mapping[str, Sequence[str]],
    forms: int,
    methods: Sequence[Method],
    share: float,
    begun: Begun = ALL,
) -> list[Expected]:
    """The stages of a comparison in the order in which they run; ``ids`` are the samples' by split, ``share`` of the
    blocks lie above the steered one.
    """
    if not ids:
        return []
    prompts = {split: len(each) * forms for split, each in ids.items()}
    directions, train = len(recipe.evaluate.directions), prompts["train"]
    steerers = [m for m in methods if m.steers]
    out = [Expected("check", 0, parts={("start", ""): 1, OWN: sum(map(len, ids.values()))})]
    pairs = recipe.collect.contrast == "pairs"
    out += [_collected("diagnose", prompts["test"], WORDINGS, pairs, begun)] if recipe.diagnostic else []
    out += [_investigated(node.label, node.make(), ids, forms) for node in recipe.diagnostics]
    if steerers:
        out.append(_collected("collect", train, 1 if recipe.diagnostic else 0, pairs, begun))
        times = {m: directions * m.variants for m in steerers}
        out.append(
            Expected("fit", train, fits=sum(times.values()), parts={("fit", m.label): n for m, n in times.items()})
        )
    if tried := {m: directions * m.variants for m in steerers if m.trials}:
        train = len(swept_samples(ids["train"], recipe.evaluate.trials)) * forms
        parts = {("trials", m.label): n * train for m, n in tried.items()}
        parts |= {("further", m.label): n * train * (m.trials - 1) for m, n in tried.items()}
        parts |= {("calibration", m.label): n for m, n in tried.items()}
        of = lambda count: sum(n * train * count(m) for m, n in tried.items())
        cells, looks = of(lambda m: m.trials * m.weight), of(lambda m: m.looks)
        passes = {
            "trunk": round(train * begun.steered),
            "cells": cells,
            "looks": looks,
            "hidings": of(lambda m: m.hidings),
        }
        out.append(
            Expected(
                "trials",
                train,
                **passes,
                share=share,
                tokens=of(lambda m: m.trials) * next(iter(tried)).answer,
                parts={("trunk", ""): train, **parts},
            )
        )
    strengths, swept = len(recipe.evaluate.strengths), len(swept_samples(ids["test"], recipe.evaluate.curve_share))
    base = next((m for m in methods if m.unsteered), None)
    asked_on_dev = [m for m in methods if m.kind != "prompt" or m is base or recipe.evaluate.choose == "grid"]
    out.append(_scored("dev", recipe, prompts["dev"], asked_on_dev, share, begun, *_on_dev(recipe, len(ids["dev"]))))
    asked = 1 + (strengths - 1) * swept / max(1, len(ids["test"]))
    out.append(_scored("test", recipe, prompts["test"], methods, share, begun, lambda m: 1, lambda m: asked))
    if recipe.evaluate.cost:
        out.append(_priced(recipe, min(len(ids["test"]), SAMPLES) * forms, methods, share))
    return [*out, Expected("report", 0, parts={OWN: 1})]


def _collected(name: str, prompts: int, asks: int, pairs: bool, begun: Begun) -> Expected:
    """A shared prefix for each prompt, or several, then short ends, or with ``pairs`` all asks as a whole; ``asks``
    wordings of it are diagnosed."""
    trunk = round(prompts * (WORDINGS if pairs else begun.collected))
    return Expected(name, prompts, trunk, diagnosed=asks * prompts)


def _investigated(label: str, diagnostic: Diagnostic, ids: Mapping[str, Sequence[str]], forms: int) -> Expected:
    seen = [i for split in diagnostic.splits for i in ids[split]]
    return Expected(
        f"diagnose-{label}",
        len(seen) * forms,
        diagnostic.whole_prompts(seen) * forms,
        parts={OWN: len(diagnostic.chosen(seen))},
    )


def _on_dev(recipe: Recipe, samples: int) -> tuple[Count, Count]:
    """How many variants of a method a dev prompt is asked on average, and how many variants at strengths; by halving, a
    variant is taken to be there for as long as there are as many variants left as strengths of variants."""
    strengths = len(recipe.evaluate.strengths)
    if recipe.evaluate.choose == "grid":
        return lambda m: m.variants, lambda m: m.variants * strengths
    arms = lambda m: m.variants * strengths
    return (
        lambda m: pairs_asked(arms(m), samples, m.variants) / samples,
        lambda m: pairs_asked(arms(m), samples) / samples,
    )


def _scored(
    split: str,
    recipe: Recipe,
    prompts: int,
    methods: Sequence[Method],
    share: float,
    begun: Begun,
    variants: Count,
    cells_of: Count,
) -> Expected:
    """A scored split: prompt methods answer in full; methods that steer the same prompts share a trunk. A prompt is
    asked so many ``variants`` of a method, and so many at strengths (``cells_of``), on average and toward each
    direction."""
    directions = len(recipe.evaluate.directions)
    count: dict[str, float] = dict.fromkeys(("trunk", "cells", "looks", "hidings", "tokens"), 0)
    parts: dict[Part, float] = {}
    for m in methods:
        if not m.steers:
            strengths = cells_of(m) if m.kind == "logits" else 1
            count["trunk"] += prompts * m.begun * (m.rows * (strengths if m.again else 1) + m.firsts)
            count["tokens"] += prompts * (m.rows * strengths * m.answer + m.firsts * m.first_answer)
            parts["ask", m.label] = prompts
            parts["further", m.label] = prompts * (strengths - 1)
            continue
        swept = directions * prompts * variants(m)  # a controller looks once, whatever the strengths
        answered = directions * prompts * cells_of(m)
        count["trunk" if m.whole else "cells"] += answered * m.weight
        count["looks"] += swept * m.looks
        count["hidings"] += swept * m.hidings
        count["tokens"] += answered * m.answer
        parts["sweep", m.label], parts["further", m.label] = swept, answered - swept
    trunks = len({asks for m in methods for asks in m.asks})
    count["trunk"] += trunks * prompts * begun.steered
    trunk, tokens = (round(count[name]) for name in ("trunk", "tokens"))
    ahead = count["cells"], count["looks"], count["hidings"]
    parts = {**parts, ("trunk", ""): trunks * prompts}
    return Expected(split, prompts, trunk, *ahead, share, tokens, parts=parts)


def stages_beside(
    recipe: Recipe,
    ids: Mapping[str, Sequence[str]],
    forms: int,
    methods: Sequence[Method],
    share: float,
    begun: Begun = ALL,
) -> list[Expected]:
    """As ``stages``, what is measured of the methods beside their table: vectors turned at random, and divergence."""
    directions, strengths = len(recipe.evaluate.directions), len(recipe.evaluate.strengths)
    questions = lambda split, most: min(len(ids[split]), most) * forms
    out, own = [], [m for m in methods if m.steers and not m.control]
    if ids and own and (most := recipe.evaluate.random_control):
        out.append(_turned(questions("test", most), directions, own, share, begun))
    if ids and recipe.evaluate.kl_budget is not None:
        asked = questions("dev", recipe.evaluate.control_questions)
        out.append(_diverging(asked, directions, strengths, [m for m in methods if m.kind != "prompt"], share))
    return out


def _turned(prompts: int, directions: int, steerers: Sequence[Method], share: float, begun: Begun) -> Expected:
    """Every method at one strength with its vectors turned, one with a controller first as it is."""
    trunks, asked = len({asks for m in steerers for asks in m.asks}), directions * prompts
    times = {m: asked * (2 if m.trials else 1) for m in steerers}
    of = lambda count: sum(count(m) for m in steerers)
    trunk = trunks * prompts * begun.steered + of(lambda m: times[m] * m.weight if m.whole else 0)
    ahead = (
        of(lambda m: 0 if m.whole else times[m] * m.weight),
        of(lambda m: asked * m.looks),
        of(lambda m: asked * m.hidings),
    )
    parts: dict[Part, float] = {("trunk", ""): trunks * prompts}
    parts |= {("sweep", m.label): n for m, n in times.items()}
    return Expected("random", prompts, round(trunk), *ahead, share, round(of(lambda m: asked * m.answer)), parts=parts)


def _diverging(prompts: int, directions: int, strengths: int, methods: Sequence[Method], share: float) -> Expected:
    """The first token of an answer under every method at every strength; those that steer have a trunk each."""
    asked, steerers = directions * prompts, [m for m in methods if m.steers]
    rows = sum(m.rows for m in methods if not m.steers)
    trunk = prompts * (1 + strengths * rows) + asked * len(steerers)
    trunk += sum(asked * strengths for m in steerers if m.whole)
    of = lambda count: sum(asked * count(m) for m in steerers)
    ahead = of(lambda m: 0 if m.whole else strengths), of(lambda m: m.looks), of(lambda m: m.hidings)
    parts: dict[Part, float] = {("trunk", ""): trunk}
    parts |= {("sweep", m.label): asked * strengths for m in steerers}
    parts |= {("ask", m.label): asked * strengths for m in methods if not m.steers}
    return Expected("divergence", prompts, trunk, *ahead, share, parts=parts)


def asked_beside(questions: int, directions: int, methods: Iterable[Method]) -> Expected:
    """So many questions put to the model as it is and, toward each direction, to every method at one strength, whose
    prompts are about as long as the test split's; methods that show worked examples are not asked."""
    parts: dict[Part, float] = {("trunk", ""): 0.0}
    trunk = tokens = 0
    for m in (m for m in methods if m.type and not m.shots):
        arms = 1 if m.unsteered else directions
        parts["sweep" if m.steers else "ask", m.label] = questions * arms / (m.rows if m.kind == "prompt" else 1)
        parts["trunk", ""] += questions * arms * m.steers
        trunk += questions * arms
        tokens += questions * arms * m.answer
    return Expected("controls", 0, trunk, tokens=tokens, asked=questions, parts=parts)


def _priced(recipe: Recipe, prompts: int, methods: Iterable[Method], share: float) -> Expected:
    """What an answer costs: every method answers some prompts from nothing, once counted and then timed."""
    again, directions = 1 + REPEATS, len(recipe.evaluate.directions)
    named = [m for m in methods if m.type]
    looks, hidings = (
        again * prompts * directions * sum(getattr(m, what) for m in named) for what in ("looks", "hidings")
    )
    calls = [directions if m.firsts else 0 for m in named]
    rows = sum(m.rows if m.kind == "logits" else directions for m in named) + sum(calls)
    tokens = sum((m.rows if m.kind == "logits" else directions) * m.answer for m in named)
    tokens = again * prompts * (tokens + sum(n * m.first_answer for n, m in zip(calls, named, strict=True)))
    of_all = {"prompt": lambda m: directions / m.rows, "logits": lambda m: 1, "steerer": lambda m: directions}
    parts: dict[Part, float] = {
        ("sweep" if m.steers else "ask", m.label): again * prompts * of_all[m.kind](m) for m in named
    }
    parts["trunk", ""] = again * prompts * directions * sum(m.steers for m in named)
    return Expected(
        "cost", prompts, again * prompts * rows, looks=looks, hidings=hidings, share=share, tokens=tokens, parts=parts
    )
