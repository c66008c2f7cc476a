"""A run on a batch or a few, by the model itself, to turn counted work into seconds.

It is the run itself (``Study``, ``Comparison``, the report) in a folder of its own that is gone afterwards, of a recipe
with two strengths and each method's first variant. Every part of every stage is timed, and scaled by how often the
whole run does it. Methods are fitted on the states of these samples, so that steered answers are about as long as they
will be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from io import StringIO
from typing import Any

import torch

from factory.bench import conflicts
from factory.benchmark import Conflicts, Rows
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.model.prefix import prefill
from factory.model.shown import pictures_once
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.run.methods.comparison import Comparison
from factory.run.methods.study import Study, study_aside
from factory.run.pipeline import conclude
from factory.run.plan.data import own_words
from factory.run.plan.work import OWN, Expected, Method, stages
from factory.run.samples import SPLITS, checks, faults, thin
from factory.run.timing import Clock, own_clock, timed
from factory.stopwatch import Part, Stopwatch, chunk

FORWARD_SECONDS, PROMPTS = 2.0, 48  # of the forwards of what is rehearsed of a split, and how many prompts at most
WORDIEST = 4  # samples among which the longest prompt is looked for, by their words
LIKE = dict.fromkeys(("dev", "cost", "controls", "random", "divergence"), "test")
"""Stages that do what another does, and are not timed for themselves."""

Samples = Mapping[str, Sequence[ConflictSample]]


@dataclass(frozen=True)
class Rehearsal:
    """``seconds`` of each part of each stage, for each time that it is done. ``prompts`` were asked, of
    ``prompt_tokens`` tokens on average and ``longest`` at most. ``beside``: stages that the run has and the count of
    its work does not know."""

    prompts: int
    prompt_tokens: int
    longest: int
    seconds: dict[tuple[str, Part], float]
    beside: list[Expected] = field(default_factory=list)

    def of(self, stage: Expected) -> float:
        """Seconds of a stage; not a number where a part of it could not be rehearsed."""
        name = LIKE.get(stage.name, stage.name)
        return sum(n * self.seconds.get((name, part), float("nan")) for part, n in stage.work.items() if n)


def rehearse(
    recipe: Recipe,
    view: ModelView,
    methods: Sequence[Method],
    limit: int | None = None,
    clock: Clock | None = None,
) -> Rehearsal:
    """Time every part of a comparison on a batch of its own samples, or a few."""
    benchmark, small = conflicts(recipe.data), thinned_recipe(recipe)
    drawn = _drawn(benchmark, limit)
    watch = Stopwatch(clock or own_clock(view.device), partial(timed, lambda: None, view.device))
    usable = partial(_usable, small, view, benchmark, drawn)
    with redirect_stdout(StringIO()):
        first = usable(1)
        with study_aside(small, view, checked=(first, [])) as study:
            study.diagnosed()
        most = _most(view, benchmark.prompt(first["test"][0], benchmark.forms[0]))
        with watch.running():
            few = usable(most)
            with study_aside(small, view, checked=(few, [])) as study, pictures_once(view):
                _run(study)
    ids = {split: [s.id for s in samples] for split, samples in few.items()}
    known = stages(small, ids, len(benchmark.forms), [replace(m, variants=1) for m in methods], 1.0)
    more = {split: len(drawn[split]) / len(few[split]) for split in SPLITS}
    seconds, beside = _scaled(watch.seconds, {s.name: s for s in known}, more)
    seconds |= {("fit", ("fit", m.label)): m.fit_seconds for m in methods if m.fit_seconds is not None}
    seconds |= {("trials", ("calibration", m.label)): m.calibration_seconds for m in methods if m.trials}
    length = _encoded(view, benchmark, few["test"]).attention_mask.sum(-1)
    return Rehearsal(len(length), int(length.float().mean()), _longest(small, view, benchmark, drawn), seconds, beside)


def thinned_recipe(recipe: Recipe) -> Recipe:
    """The recipe with a small and a middling strength, of which the second stands for all after the first. Controllers
    try theirs on all samples, which are few, so that batches are about as large as the run's."""
    ordered = sorted(recipe.evaluate.strengths, key=abs)
    strengths = tuple(dict.fromkeys((ordered[len(ordered) // 4], ordered[len(ordered) // 2])))
    evaluate = recipe.evaluate.model_copy(
        update={"strengths": strengths, "trials": 1.0, "cost": False, "curve": "full", "choose": "grid"}
    )
    return recipe.model_copy(update={"evaluate": evaluate})


def _drawn(benchmark: Conflicts, limit: int | None) -> Samples:
    """The samples of the whole run whose pictures are there."""
    drawn = {split: thin(benchmark.samples(split), limit) for split in SPLITS}
    gone = set(benchmark.absent([s for samples in drawn.values() for s in samples])[0])
    return {split: [s for s in samples if s.id not in gone] for split, samples in drawn.items()}


def _usable(
    recipe: Recipe, view: ModelView, benchmark: Conflicts, drawn: Samples, prompts: int
) -> dict[str, list[ConflictSample]]:
    """Samples that make so many ``prompts`` of each split, in whole batches of the run's where there is more than one,
    less those that cannot be used. Of dev, on which a strength is chosen, one will do."""
    found = {}
    for split, batch in ("train", recipe.collect.batch_size), ("test", recipe.evaluate.batch_size):
        size, most = max(1, batch // len(benchmark.forms)), max(1, prompts // len(benchmark.forms))
        some = thin(drawn[split], most - most % size if most > size else most)
        with chunk("check", split):
            bad = {row["sample"] for row in faults(some, split, 1.0, *checks(recipe, view, benchmark))}
        found[split] = [s for s in some if s.id not in bad] or list(some[:1])
    return {**found, "dev": found["test"][:1]}


def _most(view: ModelView, prompt: Any) -> int:
    """How many prompts are rehearsed, by one prompt's forward once everything is in place."""
    with torch.no_grad():
        _, seconds = [
            timed(lambda: prefill(view, view.encode([prompt])), view.device, own_clock(view.device))[1]
            for _ in range(2)
        ]
    return max(1, min(PROMPTS, int(FORWARD_SECONDS / seconds)))


def _run(study: Study) -> None:
    """The run, less the diagnostics and methods that need more than these samples."""
    diagnostics, study.investigated = study.diagnosed(), _investigated(study)
    told = tuple(node for node in study.recipe.diagnostics if study.investigated.get(node.label))
    study.recipe = study.recipe.model_copy(update={"diagnostics": told})
    comparison = Comparison(study)
    for label, method in comparison.steerers.items():
        comparison.methods[label] = next(iter(method.variants().values()), method)
    for f in comparison.unfitted:
        try:
            comparison.fit_stage.chunk(f.name, partial(comparison.fit, f))
        except UserError:
            comparison.methods.pop(f.label, None)
    predictions, choices = comparison.run()
    with chunk("report", ""):
        conclude(study, (diagnostics, study.investigated), predictions, choices, ([], []), (), ())


def _investigated(study: Study) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for node in study.recipe.diagnostics:
        try:
            diagnostic = study.taught(node, found)
        except UserError:
            continue
        found[node.label] = study.investigate(node, diagnostic, found)
    return found


def _scaled(
    taken: Mapping[tuple[Part, Part], float], known: Mapping[str, Expected], more: Mapping[str, float]
) -> tuple[dict[tuple[str, Part], float], list[Expected]]:
    """Seconds for each time that a part is done; and the stages that are not ``known``, whose chunks of a split take as
    many times ``more`` as the whole split has more samples."""
    seconds: defaultdict[tuple[str, Part], float] = defaultdict(float)
    for ((stage, key), part), took in taken.items():
        if stage in known:
            seconds[stage, OWN if part == (stage, key) else part] += took
        else:
            seconds[stage, OWN] += took * more.get(key.rpartition("-")[0], 1.0)
    beside = [Expected(name, 0, parts={OWN: 1}) for name, _ in seconds if name not in known]
    done = {(s.name, part): n for s in (*known.values(), *beside) for part, n in s.work.items() if n}
    return {at: took / done[at] for at, took in seconds.items() if at in done}, beside


def _encoded(view: ModelView, benchmark: Conflicts, samples: Sequence[ConflictSample]) -> Any:
    return view.encode([benchmark.prompt(s, form) for s in samples for form in benchmark.forms])


def _longest(recipe: Recipe, view: ModelView, benchmark: Conflicts, drawn: Samples) -> int:
    """Tokens of the prompts whose samples say most."""
    wordy = sorted((s for samples in drawn.values() for s in samples), key=own_words)[-WORDIEST:]
    bad = {row["sample"] for row in faults(wordy, "all", 1.0, *checks(recipe, view, benchmark))}
    return _encoded(view, benchmark, [s for s in wordy if s.id not in bad]).input_ids.shape[1]
