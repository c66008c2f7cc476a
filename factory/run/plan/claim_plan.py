"""What the test of a claim would cost, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

from rich import box
from rich.table import Table

from factory.errors import UserError
from factory.model.facts import gigabytes
from factory.model.source import Wanted
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.recipe.sections.claim import ClaimSpec
from factory.run.claim.draw import of_draw
from factory.run.methods.share import swept_samples
from factory.run.plan.estimate import Estimate, estimate, memory
from factory.run.plan.refused import Refusal, say_missing
from factory.run.plan.rehearse import Rehearsal
from factory.run.plan.work import OWN, Begun, Expected, Method
from factory.terminal import Console

COLUMNS = ("part", "times", "prompt passes", "above the site", "new tokens", "measured", "fits", "time")
WORDINGS = 3  # that the rehearsed diagnosis measures of each prompt


Rehearsed = Callable[[Recipe, Estimate], Rehearsal]
"""A rehearsal of a comparison on its model."""


class Counted(NamedTuple):
    """A part of the run: what it is called and how many times it is done; ``work`` is that of one time."""

    name: str
    times: int
    work: Expected


def counted(spec: ClaimSpec, scoring: str, found: Estimate, strengths: int, directions: int) -> list[Counted]:
    """The parts of a claim's run in one scoring. A draw's test asks the model as it is, the null, the best other
    variant and the null scaled by each prompt's own number."""
    prompts, forms = found.data.prompts, len(found.data.forms)
    method = next(m for m in found.methods if m.steers)
    share = next((s.share for s in found.stages if s.name == "test"), 1.0)
    draws, fits = len(spec.draws), len(spec.draws) * len(spec.seeds)
    total, others = sum(prompts.values()), method.variants - 1
    looked = len(swept_samples(found.data.ids["test"], spec.looked_at)) * forms
    ways, wordings = 1 + len(spec.predictors) + 2 * bool(spec.asks), 1 + 2 * bool(spec.asks)
    parts = {OWN: looked * ways / WORDINGS}
    measured = Expected("diagnose", looked, looked * wordings, diagnosed=looked * ways, parts=parts)
    asked = lambda split, arms: _asked(split, prompts[split], directions * arms, method, share, found.begun)
    out = [
        Counted("collect", draws, Expected("collect", total, round(total * found.begun.collected), diagnosed=total)),
        Counted("fit", fits, _fitted(prompts["train"], directions * method.variants, method)),
        Counted("dev", fits, asked("dev", strengths * (1 + 2 * others))),
        Counted("test", fits, asked("test", 3)),
        Counted("predictors", draws, measured),
    ]
    if (p := spec.planted) and scoring in spec.scorings[: p.scorings]:
        arms, times = 1 + 3 * len(p.variants), p.draws * len(p.effects)
        out += [
            Counted("planted: fit", times, _fitted(prompts["train"], directions * (1 + 2 * len(p.variants)), method)),
            Counted("planted: dev", times, asked("dev", strengths * arms)),
            Counted("planted: test", times, asked("test", 4)),
        ]
    return out


def _fitted(prompts: int, fits: int, method: Method) -> Expected:
    return Expected("fit", prompts, fits=fits, parts={OWN: 0, ("fit", method.label): fits})


def _asked(split: str, prompts: int, arms: int, method: Method, share: float, begun: Begun) -> Expected:
    """A split asked by so many variants at strengths: one trunk for all, and the unsteered model's answers."""
    cells = prompts * arms
    parts = {("trunk", ""): prompts, ("sweep", method.label): prompts, ("further", method.label): cells - prompts}
    trunk, tokens = round(prompts * begun.steered), (cells + prompts) * method.answer
    return Expected(split, prompts, trunk, cells, share=share, tokens=tokens, parts=parts)


def plan_claim(
    recipe: Recipe, model: Wanted, console: Console, refused: Refusal, rehearsed: Rehearsed, limit: int | None
) -> None:
    """Print the parts of the run in each scoring, with their passes, and the time where the weights are here."""
    spec, total, passes = given(recipe.claim), 0.0, 0.0
    needed, said = 0, False
    for scoring in spec.scorings:
        try:
            one = of_draw(recipe, spec.draws[0], scoring).model_copy(update={"claim": None})
        except UserError:  # refused already, with what the run checks first
            continue
        found = estimate(one, limit, wanted=model)
        for line in found.missing:
            if line not in refused.lines:
                refused.add(line)
        for line in () if said else (*refused.fetched, *found.data.noted):
            say_missing(console, line)
        measured = None
        if found.model and found.data.prompt and not (refused.lines or refused.fetched):
            with refused.kept():
                measured = rehearsed(one, found)
        if not said and found.model:
            console.print(
                f"model: {found.model.cls} (family {found.model.family}), layer {found.layer}", highlight=False
            )
        said = True
        if not found.data.samples:
            continue
        parts = counted(spec, scoring, found, len(one.evaluate.strengths), len(one.evaluate.directions))
        seconds = [c.times * measured.of(c.work) if measured else math.nan for c in parts]
        console.print(_table(spec, scoring, found, parts, seconds))
        total, passes = total + sum(seconds), passes + sum(c.times * c.work.passes for c in parts)
        tokens = (measured.prompt_tokens, measured.longest) if measured else found.tokens
        if found.model and tokens:
            needed = max(needed, memory(one, found.model, tokens, found.data.prompts))
    console.print(f"all: {passes:,.0f} prompt passes, time {_clock(total)}", highlight=False)
    if needed:
        console.print(f"memory: about {gigabytes(needed)} at the fullest moment, beside the libraries", highlight=False)
    console.print(
        "prompt pass: one forward of a whole prompt; a strength's runs the blocks above the site alone, which are here"
        " counted as their share. Of prompts that begin alike one is a pass, and"
        " what the others say beyond it is none"
    )


def _table(spec: ClaimSpec, scoring: str, found: Estimate, parts: Sequence[Counted], seconds: Sequence[float]) -> Table:
    samples = ", ".join(f"{split} {n:,}" for split, n in found.data.samples.items())
    title = (
        f"{scoring}: samples of a draw: {samples}; each asked {len(found.data.forms)} time(s); {len(spec.draws)} draws,"
        f" {len(spec.seeds)} seeds"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=column in ("part", "time"))
    for c, took in zip(parts, seconds, strict=True):
        w, n = c.work, c.times
        counts = (n, n * w.passes, n * w.share * w.cells, n * w.tokens, n * w.diagnosed, n * w.fits)
        table.add_row(c.name, *(f"{count:,.0f}" if count else "" for count in counts), _clock(took))
    return table


def _clock(seconds: float) -> str:
    return "unknown" if math.isnan(seconds) else str(timedelta(seconds=round(seconds)))
