"""Doing each part of a comparison on a batch or a few, by the model itself, to turn counted work into seconds.

Every part runs as the run will run it, in batches of the run's size where the model is fast enough. Methods are fitted
on the states of the rehearsed batch, so that steered answers are about as long as they will be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from factory import files
from factory.bench import Bench, asked_forms, conflicts
from factory.data.sample import ConflictSample
from factory.diagnose import facts
from factory.errors import UserError
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.run.choose import choose
from factory.run.collect import ASKS, Plan, collect, joined, measured_in, states_toward
from factory.run.comparison import examples, finished, prompters, unsteered
from factory.run.environment import about_run
from factory.run.estimate import LOOKED_AT, own_words
from factory.run.evaluate import Fitted, ask, asked_by, cells, contrast, looks, trunk_of, verdicts_by_strength
from factory.run.labels import labels
from factory.run.samples import SPLITS, fault, fitting, thin
from factory.run.study import Rows, reads_tails
from factory.run.timing import Clock, timed
from factory.run.work import Method, Part, Stage
from factory.steer import LogitsMethod, States, Steerer, Trials
from factory.steer.base import sound

FORWARD_SECONDS, PROMPTS = 2.0, 48  # of the forwards of what is rehearsed of a split, and how many prompts at most


@dataclass(frozen=True)
class Rehearsal:
    """``seconds`` of each part, per unit of work: a prompt, a sample or a fit. ``prompts`` were asked, of
    ``prompt_tokens`` tokens on average and ``longest`` at most."""

    prompts: int
    prompt_tokens: int
    longest: int
    seconds: dict[Part, float] = field(default_factory=dict)

    def of(self, stage: Stage) -> float:
        """Seconds of a stage; not a number where a part of it could not be rehearsed."""
        return sum(times * self.seconds.get(part, float("nan")) for part, times in stage.parts.items() if times)


class _Stage:
    """The rehearsal under way."""

    def __init__(self, recipe: Recipe, view: ModelView, layer: int, limit: int | None, clock: Clock) -> None:
        self.recipe, self.view, self.layer, self.limit, self.clock = recipe, view, layer, limit, clock
        self.benchmark, self.most = conflicts(recipe.data), 1
        self.bench = Bench(view, self.benchmark, layer, recipe.evaluate.max_new_tokens)
        self.fit = fitting(view, self.benchmark, recipe.collect.instructions)
        self.taken: dict[Part, tuple[float, float]] = {}
        self.rows: Rows = []
        self.diagnosed: dict[str, Rows] = {}

    def time(self, part: Part, units: float, job: Any) -> Any:
        """Do ``units`` of a part, beside those done before."""
        value, seconds = timed(job, self.view.device, self.clock)
        self.note(part, units, seconds)
        return value

    def note(self, part: Part, units: float, seconds: float) -> None:
        before, done = self.taken.get(part, (0.0, 0.0))
        self.taken[part] = before + seconds, done + units

    @property
    def seconds(self) -> dict[Part, float]:
        return {part: seconds / units for part, (seconds, units) in self.taken.items() if units}

    def batches(self, split: str, rows: int) -> list[list[ConflictSample]]:
        """Batches of usable samples of a split that make ``rows`` prompts each, or fewer where those take too long."""
        forms = len(self.benchmark.forms)
        size = max(1, min(rows, self.most) // forms)
        drawn = thin(self.benchmark.samples(split), self.limit)
        gone = set(self.benchmark.absent(drawn)[0])
        there = [s for s in drawn if s.id not in gone]
        some = thin(there, size * max(1, self.most // (size * forms)))
        some = [
            s for s in some if self.time(("check", ""), 1, lambda s=s: fault(s, self.view.writing, self.fit)) is None
        ] or there[:1]
        return [some[i : i + size] for i in range(0, len(some), size)]

    def longest(self) -> int:
        """Tokens of the prompts whose samples say most."""
        drawn = [s for split in SPLITS for s in thin(self.benchmark.samples(split), self.limit)]
        gone = set(self.benchmark.absent(drawn)[0])
        wordy = sorted((s for s in drawn if s.id not in gone), key=own_words)[-LOOKED_AT:]
        there = [s for s in wordy if fault(s, self.view.writing, self.fit) is None]
        return self.view.encode([p for *_, p in asked_forms(self.bench, there)]).input_ids.shape[1]

    def warm_up(self) -> None:
        """Set how many prompts are rehearsed by one prompt's forward, once everything is in place."""
        sample, form, prompt = asked_forms(self.bench, self.batches("test", 1)[0])[0]
        run = lambda: trunk_of(self.bench, [(sample, form, prompt)])
        run()
        self.most = max(1, min(PROMPTS, int(FORWARD_SECONDS / timed(run, self.view.device)[1])))


def rehearse(
    recipe: Recipe,
    view: ModelView,
    layer: int,
    methods: Sequence[Method],
    limit: int | None = None,
    clock: Clock = time.perf_counter,
) -> Rehearsal:
    """Time every part of a comparison on a batch of its own samples."""
    r = _Stage(recipe, view, layer, limit, clock)
    r.warm_up()
    train, test = r.batches("train", recipe.collect.batch_size), r.batches("test", recipe.evaluate.batch_size)
    states = _collected(r, train)
    _investigated(r)
    named = {node.label: node.make() for node in recipe.steering}
    for batch in test:
        _asked(r, named, batch, [s for some in train for s in some])
    if steerers := {label: m for label, m in named.items() if isinstance(m, Steerer)}:
        _steered(r, steerers, states, r.batches("train", recipe.evaluate.batch_size)[0], test)
    r.time(("report", ""), 1, lambda: _reported(r, unsteered(named)))
    fits = {("fit", m.label): m.fit_seconds for m in methods if m.fit_seconds is not None}
    fits |= {("calibration", m.label): m.calibration_seconds for m in methods if m.trials}
    length = view.encode([p for batch in test for *_, p in asked_forms(r.bench, batch)]).attention_mask.sum(-1)
    return Rehearsal(len(length), int(length.float().mean()), r.longest(), {**r.seconds, **fits})


def _collected(r: _Stage, batches: Sequence[Sequence[ConflictSample]]) -> dict[str, Any]:
    """States and tasks of training prompts, and their numbers, collected and, in one wording or in all, diagnosed."""
    diagnostic, how = r.recipe.diagnostic.make() if r.recipe.diagnostic else None, r.recipe.collect
    chunks: list[dict[str, Any]] = []
    tasks: list[str] = []
    for samples in batches:
        asked = asked_forms(r.bench, samples)
        keys = [f"{s.id}/{form}" for s, form, _ in asked]
        for wordings in (ASKS, ASKS[:1]) if diagnostic else ((),):
            plan = Plan(r.layer, how.position, how.instructions, wordings, reads_tails(r.recipe))
            if not chunks:
                collect(r.view, [asked[0][-1]], plan, diagnostic, keys[:1])
            work = lambda plan=plan, asked=asked, keys=keys: collect(
                r.view, [p for *_, p in asked], plan, diagnostic, keys
            )
            states, found = r.time(("collect", str(len(wordings))), len(asked), work)
            if len(wordings) > 1:
                named = {f"{s.id}/{form}/{a}": facts(s, form, a) for s, form, _ in asked for a in wordings}
                r.diagnosed.setdefault("", []).extend(
                    {**row, **named[row["sample"]], "split": "test"} for rows in found.values() for row in rows
                )
        chunks.append(states)
        tasks += [s.task for s, *_ in asked]
    return {**joined(chunks), "tasks": tasks}


def _investigated(r: _Stage) -> None:
    """The further diagnostics, each told what those before it saw of the training split."""
    for node in r.recipe.diagnostics:
        diagnostic, rows = node.make(), []
        try:
            diagnostic.learn([row for found in r.diagnosed.values() for row in found if row["split"] == "train"])
        except UserError:
            continue
        for split in diagnostic.splits:
            for samples in r.batches(split, r.recipe.collect.batch_size):
                measured = len(diagnostic.chosen([s.id for s in samples]))
                found = r.time(
                    ("diagnose", node.label), measured, lambda d=diagnostic, s=samples: d.on_samples(r.bench, s)
                )
                rows += [{**row, "split": split} for row in found]
        r.diagnosed[node.label] = rows


def _asked(
    r: _Stage, named: Mapping[str, Any], samples: Sequence[ConflictSample], pool: Sequence[ConflictSample]
) -> None:
    """Methods on prompts, and decoding-time methods at every strength."""
    e, prompts = r.recipe.evaluate, len(samples) * len(r.benchmark.forms)
    worked = lambda *which: examples(r.benchmark, pool, *which)
    for label, method in prompters(named).items():
        r.rows += r.time(
            ("ask", label), prompts, lambda m=method, label=label: ask(r.bench, samples, label, m, e.directions, worked)
        )
    for label, method in named.items():
        if isinstance(method, LogitsMethod):
            r.rows += r.time(
                ("ask", label),
                prompts,
                lambda m=method, label=label: contrast(r.bench, samples, label, m, e.directions, e.strengths),
            )


def _steered(
    r: _Stage,
    steerers: Mapping[str, Steerer],
    collected: Mapping[str, Any],
    train: Sequence[ConflictSample],
    test: Sequence[Sequence[ConflictSample]],
) -> None:
    """Each method's first variant, tried on training prompts where it wants that, and then on test prompts."""
    tried = asked_forms(r.bench, train)
    of_train = r.time(("trunk", ""), len(tried), lambda: trunk_of(r.bench, tried))
    for label, method in steerers.items():
        for direction in r.recipe.evaluate.directions:
            variant, steerer = next(iter((method.variants() or {"": method}).items()))
            try:
                state = r.time(("fit", label), 1, lambda s=steerer, d=direction: s.fit(_states(r, collected, d)))
                sound(state, f"steering '{label}': fit")
            except UserError:
                break
            f = Fitted(label, direction, variant, steerer, state)
            if steerer.trial_strengths:
                trials = r.time(
                    ("trials", label), len(tried), lambda f=f: _tried(r, tried, of_train, f, measured_in(collected))
                )
                f = Fitted(label, direction, variant, steerer, steerer.calibrate(f.state, trials))
            for batch in test:
                asked = asked_by(r.bench, batch, f)
                trunk = r.time(("trunk", ""), len(asked), lambda asked=asked: trunk_of(r.bench, asked))
                _swept(r, f, asked, trunk)


def _swept(r: _Stage, f: Fitted, asked: Sequence[Any], trunk: Any) -> None:
    """A method's cells at a small and a large strength; of a controller first the look that serves all strengths."""
    looking = 0.0
    if f.steerer.trial_strengths:
        _, looking = timed(lambda: looks(r.bench, trunk, f), r.view.device, r.clock)
        r.note(("look", f.label), len(asked), looking)
    ordered = sorted(r.recipe.evaluate.strengths, key=abs)
    strengths = dict.fromkeys((ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]))
    rows, seconds = timed(lambda: cells(r.bench, asked, trunk, [f], list(strengths)), r.view.device, r.clock)
    r.note(("cell", f.label), len(asked) * len(strengths), max(0.0, seconds - looking))
    first = [row for row in rows if row["strength"] == next(iter(strengths))]
    r.rows += [{**row, "strength": s} for s in ordered for row in first]  # a report of as many rows as it will have


def _states(r: _Stage, collected: Mapping[str, Any], direction: str) -> States:
    found = [row for rows in r.diagnosed.values() for row in rows if row["split"] == "train"]
    return states_toward(direction, collected, collected["tasks"], r.recipe.seed, found)


def _tried(r: _Stage, asked: Sequence[Any], trunk: Any, f: Fitted, known: Mapping[str, Any]) -> Trials:
    strengths, n = f.steerer.trial_strengths, len(asked)
    columns = verdicts_by_strength(cells(r.bench, asked, trunk, [f], strengths), strengths)
    follow, error = (
        torch.tensor([[v == what for v in column] for column in columns]).T for what in (f.direction, "error")
    )
    measured = {metric: values.mean().expand(n) for metric, values in known.items()}
    return Trials(follow, error, looks(r.bench, trunk, f), trunk.last.cpu(), measured, torch.arange(n), r.recipe.seed)


def _reported(r: _Stage, base: str) -> None:
    """The results and the report of what was rehearsed, drawn into nothing."""
    recipe, bench = r.recipe, r.benchmark
    summaries = {
        node.label: node.make().summary(r.diagnosed.get(node.label, []))
        for node in recipe.diagnostics
        if r.diagnosed.get(node.label)
    }
    dev, test = ([{**row, "split": split} for row in r.rows] for split in ("dev", "test"))
    predictions = finished(dev, test, choose(dev, recipe.evaluate.error_budget, base), base, labels(recipe).reference)
    told = [summary.under(label) for label, summary in summaries.items() if summary is not None]
    results = {
        "schema": 1,
        "run": {**about_run(recipe, r.view, []), "skipped": []},
        "rows": bench.rows(predictions, seed=recipe.seed, skipped=0),
    }
    rows = [row for found in r.diagnosed.values() for row in found]
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        files.write_json(Path(folder) / "results.json", results)
        bench.keep(Path(folder), predictions, recipe.seed)
        bench.report(Path(folder), results, rows, predictions, "", recipe.report.plots, told)
