"""What a comparison of tuners would cost, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from itertools import product
from statistics import median
from typing import TypeVar

from rich import box
from rich.table import Table

from factory.corpus.collate import Collator
from factory.corpus.source import Source
from factory.model.load import load, sizes
from factory.model.source import Wanted
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.recipe.schema import CompareSpec, ContenderSpec, TaskSpec
from factory.run.plan.refused import Refusal, say_missing
from factory.run.questions.arms import Arm
from factory.run.questions.suite import AnySuite, Suite, in_turns
from factory.run.timing import own_clock, timed
from factory.run.tuners.checked import refuse_unknown_tasks
from factory.run.tuners.opening import planned_source
from factory.run.tuners.tuning import steps_of
from factory.terminal import Console
from factory.train.loop import Answers, Shape
from factory.tune import Tuner

TIMED_STEPS, TIMED_ANSWERS = 2, 8
Made = TypeVar("Made")
Suites = Mapping[str, AnySuite | None]


def plan_tuners(
    recipe: Recipe,
    model: Wanted,
    console: Console,
    refused: Refusal,
    suites: Suites,
    limit: int | None = None,
) -> None:
    """Print tunings, parameters, answers asked, and the time where the weights are on this machine."""

    def tried(make: Callable[[], Made]) -> Made | None:
        with refused.kept():
            return make()
        return None

    spec = given(recipe.compare)
    sources = {
        task.name: tried(partial(planned_source, recipe, task.data, spec.batch_size, model)) for task in spec.tasks
    }
    for contender, task in product(spec.tuners, spec.tasks):
        if source := sources[task.name]:
            tried(partial(refuse_unknown_tasks, spec.tune(contender, task, 1.0), source))
    for why in refused.fetched:
        say_missing(console, why)
    counted = tried(lambda: _counts(spec, model))
    _say_tunings(spec, console, sources, counted, limit)
    _say_answers(spec, console, suites)
    there = {name: source for name, source in sources.items() if source}
    if not (refused.lines or refused.fetched):
        _say_time(recipe, spec, model, console, there, suites, limit)
    else:
        console.print("time: unknown until the model and the data are there", highlight=False)
    if recipe.seeds:
        console.print(f"once for each of {len(recipe.seeds)} seeds; the above is for one", highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _applied(contender: ContenderSpec, spec: CompareSpec, view: ModelView) -> Tuner:
    tuner = contender.tuner.make()
    tuner.apply(view, spec.beside, words=dict.fromkeys(spec.new_tokens))
    return tuner


def _counts(spec: CompareSpec, model: Wanted) -> dict[str, dict[str, int]]:
    """Trained parameters of each tuner, from sizes alone."""
    return {c.tuner.label: _applied(c, spec, sizes(model)).counts() for c in spec.tuners}


def _steps(spec: CompareSpec, contender: ContenderSpec, task: TaskSpec, source: Source, limit: int | None) -> int:
    steps = steps_of(spec.tune(contender, task, 1.0), len(source))
    return min(steps, limit or steps)


def _say_tunings(
    spec: CompareSpec,
    console: Console,
    sources: Mapping[str, Source | None],
    counts: dict[str, dict[str, int]] | None,
    limit: int | None,
) -> None:
    methods = _table(
        "methods", "method", "parameters", f"with {' and '.join(spec.beside) or 'nothing'}", "learning rates"
    )
    for contender in spec.tuners:
        label, rates = contender.tuner.label, _by_rates(spec, contender)
        own, whole = (
            (f"{counts[label]['tuner']:,}", f"{sum(counts[label].values()):,}") if counts else ("unknown", "unknown")
        )
        said = [
            ", ".join(f"{r:g}" for r in each) + (f" ({', '.join(names)})" if len(rates) > 1 else "")
            for each, names in rates.items()
        ]
        methods.add_row(label, own, whole, "; ".join(said))
    console.print(methods)
    tasks = _table("tasks", "task", "samples", "steps of each", "tunings", "rates chosen on", "scored on")
    for task in spec.tasks:
        source = sources[task.name]
        n, steps = (
            (f"{len(source):,}", f"{_steps(spec, spec.tuners[0], task, source, limit):,}")
            if source
            else ("unknown", "unknown")
        )
        tunings = sum(len(spec.rates(c, task)) for c in spec.tuners)
        tasks.add_row(
            task.name,
            n,
            steps,
            str(tunings),
            task.choose.label if task.choose else "nothing",
            ", ".join(node.label for node in task.score),
        )
    console.print(tasks)


def _asks(spec: CompareSpec) -> dict[str, int]:
    """How many models each benchmark is put to."""
    asks: dict[str, int] = {}
    for task in spec.tasks:
        asks |= {node.label: 1 + len(spec.tuners) for node in task.score}
        if task.choose:
            asks[task.choose.label] = sum(len(spec.rates(c, task)) for c in spec.tuners)
    return asks


def _by_rates(spec: CompareSpec, contender: ContenderSpec) -> dict[tuple[float, ...], list[str]]:
    """The tasks on which a tuner has the same learning rates."""
    tasks: dict[tuple[float, ...], list[str]] = {}
    for task in spec.tasks:
        tasks.setdefault(spec.rates(contender, task), []).append(task.name)
    return tasks


def _say_answers(spec: CompareSpec, console: Console, suites: Suites) -> None:
    table = _table("scoring", "benchmark", "questions", "models", "answers")
    for label, models in _asks(spec).items():
        suite = suites[label]
        n = len(suite.items) if isinstance(suite, Suite) else None
        table.add_row(
            label, "unknown" if n is None else f"{n:,}", str(models), "unknown" if n is None else f"{n * models:,}"
        )
    console.print(table)


def _say_time(
    recipe: Recipe,
    spec: CompareSpec,
    model: Wanted,
    console: Console,
    sources: Mapping[str, Source],
    suites: Suites,
    limit: int | None,
) -> None:
    training = 0.0
    for task in spec.tasks:
        for contender in spec.tuners:
            each = _steps(spec, contender, task, sources[task.name], limit) * _step_seconds(
                recipe, spec, model, contender, task, sources[task.name]
            )
            training += each * len(spec.rates(contender, task))
    view = load(model)
    asked = {label: suite for label, suite in suites.items() if isinstance(suite, Suite)}
    answers = sum(
        len(suite.items) * _asks(spec)[label] * _answer_seconds(view, suite) for label, suite in asked.items()
    )
    clock = lambda seconds: str(timedelta(seconds=round(seconds)))
    console.print(
        f"time: tuning {clock(training)}, scoring {clock(answers)}, from some steps of every method and some answers to"
        " every benchmark, timed just now in one process; loading and diagnostics come on top",
        highlight=False,
        soft_wrap=True,
    )


def _step_seconds(
    recipe: Recipe, spec: CompareSpec, model: Wanted, contender: ContenderSpec, task: TaskSpec, source: Source
) -> float:
    """Seconds of one optimiser step's forward and backward passes, all its micro-batches in one process."""
    view = load(model)
    shape = Shape.of(spec.tune(contender, task, 1.0), recipe.launch.processes)
    _applied(contender, spec, view)
    view.model.train()
    collate, objective = Collator(view, source, task.data.max_tokens, None), Answers(view)
    batch = {
        name: value.to(view.device) for name, value in collate([i % len(source) for i in range(shape.micro)]).items()
    }
    clock, step = own_clock(view.device), lambda: objective(**batch).backward()
    return shape.accumulate * shape.ranks * median(timed(step, view.device, clock)[1] for _ in range(1 + TIMED_STEPS))


def _answer_seconds(view: ModelView, suite: Suite) -> float:
    prompts = [item.prompt() for item in in_turns(suite.items)[0][:TIMED_ANSWERS]]
    job = partial(Arm().answer, view, prompts, suite.benchmark.new_tokens)
    return timed(job, view.device, own_clock(view.device))[1] / len(prompts)
