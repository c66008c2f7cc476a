"""A tuning before it is run: its plan, and a training sample as the model will be taught it."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from factory.corpus.collate import Collator
from factory.corpus.show import show_sample
from factory.errors import UserError
from factory.model.facts import find_facts
from factory.model.load import outline, sizes
from factory.model.source import Wanted
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.recipe.schema import TuneSpec
from factory.run.pipeline import owner_of
from factory.run.plan.blocks import Sizes
from factory.run.plan.computed_steps import Stepped, compute_tuning
from factory.run.plan.refused import Refusal, say_missing
from factory.run.plan.tables import clock_time
from factory.run.questions.suite import AnySuite
from factory.run.tuners.checked import refuse_unknown_tasks
from factory.run.tuners.going_on import refuse_other
from factory.run.tuners.held_out import Held, held_of, learnt_and_held
from factory.run.tuners.opening import Opened, open_source, planned_source
from factory.run.tuners.tuning import inputs_of, refuse_kept_features, show_trainable, steps_of
from factory.terminal import Console
from factory.train.loop import Shape
from factory.tune.initial import Initial
from factory.tune.tokens import tell_words

PARTS = {
    "begin and end": "beginning and end",
    "read": "micro-batches read",
    "pass": "forward and backward",
    "clip": "gradients clipped",
    "update": "optimiser's updates",
    "step": "rest of the steps",
    "checkpoint": "checkpoints",
    "look": "batches held out",
    "score": "questions held out",
    "exam": "examined, of each task",
}


def plan_tuning(
    recipe: Recipe,
    model: Wanted,
    console: Console,
    refused: Refusal,
    suites: Mapping[str, AnySuite | None],
    limit: int | None = None,
    device: str | None = None,
) -> dict[str, float]:
    """Print what a tuning would train, on what, for how many steps; for a named ``device`` also in what time, and
    return the seconds of its parts."""
    spec, source, view, held, steps = given(recipe.tune), None, None, None, 0
    with refused.kept():
        source = planned_source(recipe, spec.data, spec.batch_size, model)
        refuse_unknown_tasks(spec, source)
        held = held_of(spec, suites, lambda data: planned_source(recipe, data, spec.batch_size, model))
        numbers, aside = learnt_and_held(spec, source)
        steps, ranks = steps_of(spec, len(numbers)), recipe.launch.processes
        shape = Shape.of(spec, ranks)
        root, name, *_ = owner_of(recipe, limit)
        refuse_other(root / name / "tune", inputs_of(recipe, source, limit, held))
        epochs = f", {steps * spec.batch_size / len(numbers):.2f} epochs"
        console.print(
            f"data: {len(numbers):,} samples{' of a stream' if spec.data.streaming else ''}, {steps:,} steps of"
            f" {spec.batch_size} ({ranks} rank(s) x {shape.accumulate} x {shape.micro})"
            + ("" if spec.data.streaming else epochs),
            highlight=False,
        )
        if held:
            looks = -(-steps // held.spec.every)
            n = len(held.source) if held.source else len(aside)
            questions = f" and {len(held.suite.items):,} questions of {held.suite.node.label}" if held.suite else ""
            console.print(f"held out: {looks:,} looks at {n:,} samples{questions}", highlight=False)
    for why in refused.fetched:
        say_missing(console, why)
    with refused.kept():
        view = sizes(model)
        tuner = spec.method.make()
        tuner.apply(view, spec.beside, words=dict.fromkeys(spec.new_tokens))
        if spec.initial:
            Initial.of(spec.initial).begin(tuner, view)
        refuse_kept_features(spec, view, tuner)
        show_trainable(view, tuner, spec)
        console.print(
            f"learning rate: {spec.learning_rate or tuner.learning_rate:g}; ZeRO stage {recipe.launch.zero}",
            highlight=False,
        )
    if device and source is not None and view is not None:
        with refused.kept():
            return _say_time(recipe, model, console, source, view, held, min(steps, limit or steps), device)
    return {}


def _say_time(
    recipe: Recipe,
    model: Wanted,
    console: Console,
    source: Opened,
    view: ModelView,
    held: Held | None,
    steps: int,
    device: str,
) -> dict[str, float]:
    facts, _, _ = find_facts(model)
    if facts is None:
        console.print("time: unknown until the model's sizes are known", highlight=False)
        return {}
    trained = Stepped.of(view, Sizes.of(facts))
    try:
        computed = compute_tuning(recipe, device, facts, model, source, trained, steps, held)
    except UserError as why:
        console.print(f"time: unknown, as {why}", highlight=False, soft_wrap=True)
        return {}
    table = Table("part", "times", "each", "time", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    for name, seconds in computed.parts.items():
        each = f"{1e3 * computed.seconds[name]:,.1f} ms"
        table.add_row(PARTS[name], f"{computed.work.parts[name]:,}", each, clock_time(seconds))
    table.columns[0].footer, table.columns[-1].footer = "all", clock_time(sum(computed.parts.values()))
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    for line in computed.told:
        console.print(f"time: {line}", highlight=False, soft_wrap=True)
    return computed.parts


def show(recipe: Recipe, number: int) -> None:
    """Print training sample ``number`` of a recipe, of each of its tasks where it compares tuners, as the model will be
    taught it (``show RECIPE --sample N``).
    """
    spec = recipe.tune or recipe.compare
    if spec is None:
        raise UserError(
            f"recipe '{recipe.name}' tunes nothing, so it has no training samples; --sample needs its key 'tune' or"
            " 'compare'"
        )
    view = outline(recipe.model)
    tell_words(view.tokenizer, spec.new_tokens)
    tasks = {"": spec.data} if isinstance(spec, TuneSpec) else {task.name: task.data for task in spec.tasks}
    for task, data in tasks.items():
        source = open_source(recipe, data, spec.batch_size, view, quiet=True)
        if not 0 <= number < len(source):
            raise UserError(
                f"--sample {number}: the samples{task and f' of {task}'} are numbered 0 to {len(source) - 1}"
            )
        (example,), _ = Collator(view, source, data.max_tokens, None).examples([number], blank=False)
        show_sample(view, f"{number}{task and f' of {task}'} ({source.name(number)})", example, Console())
