"""What a run would do, before it does anything: model, sites, stages with their forwards, memory, time. What the run
would refuse, its plan refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from time import perf_counter, process_time, thread_time

from rich.table import Table

from factory.components.source import planned
from factory.errors import UserError
from factory.launch.launcher import seats, wanted
from factory.model.facts import ModelFacts, facts_of, gigabytes, too_small
from factory.model.load import device_for, load, to_fetch
from factory.model.source import Wanted
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.run import owner
from factory.run.labels import changes_nothing
from factory.run.pipeline import check_job, check_launch, owner_of, preflight
from factory.run.plan.computed import UNCOUNTED, ByFormula, compute
from factory.run.plan.data import Data
from factory.run.plan.devices import check_name
from factory.run.plan.estimate import Estimate, estimate, memory
from factory.run.plan.refused import Refusal, say_missing
from factory.run.plan.rehearse import Rehearsal, rehearse
from factory.run.plan.tables import clock_time, methods_table, stages_table
from factory.run.plan.work import asked_beside
from factory.run.questions.controls import beside
from factory.run.questions.suite import AnySuite, Suite, suite_of
from factory.run.timing import Clock, own_clock, timed
from factory.steer import LogitsMethod, PromptMethod, Steerer, TwoCalls
from factory.terminal import Console

HELD_UP = 1.25, 2.0  # a plan's time over its work, and seconds beside it, from which it is said


def plan(recipe: Recipe, limit: int | None = None, waited: float = 0.0, device: str | None = None) -> dict[str, float]:
    """Print what ``run`` would do with a recipe, as far as it can be known. ``waited``: seconds that it took to get
    here, which a run takes as well. With a ``device`` its time is computed for that one, and no weights are read.
    Returns the seconds of each stage, or of each part of a tuning, where they are known.

    Raises ``UserError`` at its end with what the run would refuse, a line each, the run's own first.
    """
    began, worked = perf_counter(), thread_time()
    if device is not None:
        check_name(device)
        waited = process_time()
        if recipe.train or recipe.compare or recipe.claim:
            raise UserError("--device: time is computed for recipes that steer or tune; leave it out here")
    console, model = Console(markup=False), Wanted.of(recipe.model)
    console.print(f"plan of {recipe.name}", style="bold", highlight=False)
    refused, seconds = Refusal(recipe), dict[str, float]()
    with refused.kept():
        refused.fetched = to_fetch(model)
    suites = _checked(recipe, limit, model, refused)
    if not recipe.train:  # whose plan ends there
        refused.say(console)
    if recipe.benchmarks or any(isinstance(suite, Suite) and suite.control for suite in suites.values()):
        _say_benchmarks(recipe, suites, console)
    if recipe.train:  # what trains is imported where it is planned: its libraries take as long as all others
        _plan_training(recipe, console, refused)
    elif recipe.tune:
        from factory.run.plan.tuning_plan import plan_tuning

        seconds = plan_tuning(recipe, model, console, refused, suites, limit, device)
    elif recipe.compare:
        from factory.run.plan.contest_plan import plan_tuners

        plan_tuners(recipe, model, console, refused, suites, limit)
    elif recipe.claim:
        from factory.run.plan.claim_plan import plan_claim

        rehearsed = partial(measure, limit=limit, waited=waited, wanted=model)
        plan_claim(recipe, model, console, refused, rehearsed, limit)
    elif recipe.data:
        controls = sum(len(s.items) for s in suites.values() if isinstance(s, Suite) and s.control)
        seconds = _plan_comparison(recipe, model, console, refused, limit, waited, device, controls)
    if not (device or recipe.tune) and _device(recipe) == "cpu":
        _say_held_up(console, perf_counter() - began, thread_time() - worked)
    refused.tell()
    return seconds


def _say_held_up(console: Console, took: float, worked: float) -> None:
    """Say where a plan's own work on the processor was much less than the time it took."""
    times, seconds = HELD_UP
    if took > times * worked and took - worked > seconds:
        console.print(
            f"time: this plan took {clock_time(took)} and worked {clock_time(worked)} of it: other programs or the disk"
            " held it up, as they would a run; its times are of work alone",
            highlight=False,
            soft_wrap=True,
        )


def _checked(recipe: Recipe, limit: int | None, model: Wanted, refused: Refusal) -> dict[str, AnySuite | None]:
    """The question benchmarks by label, None for one that cannot be made; what a run checks first is checked, in the
    run's order.
    """
    launch = recipe.launch
    suites: dict[str, AnySuite | None] = {}
    with refused.kept():
        if wanted(launch):
            seats(launch, recipe.model)
        check_launch(recipe, launch.processes)
    with planned(), refused.kept():
        preflight(recipe, model, told=False, fetch=False)
    for node in recipe.asked:
        suites[node.label] = None
        with refused.kept():
            suites[node.label] = suite_of(node)(node, recipe, limit, model)
    with refused.kept():
        check_job(recipe, [suite for suite in suites.values() if suite], launch.processes)
    with refused.kept():
        owner.check_owner(*owner_of(recipe, limit))
    if not refused.lines:  # what the conflicts lack, their own check tells better
        with refused.kept():
            suites |= {suite.node.label: suite for suite in beside(recipe, limit, model)}
    return suites


def _say_benchmarks(recipe: Recipe, suites: Mapping[str, AnySuite | None], console: Console) -> None:
    """The question benchmarks: how many answers they ask of how many arms."""
    made = [node.make() for node in recipe.steering]
    directed = [m for m in made if isinstance(m, LogitsMethod | Steerer) or _asks(m)]
    ways = len(recipe.evaluate.directions)
    arms = 1 + len(recipe.artefacts) + len(directed) * ways
    firsts = sum(isinstance(m, TwoCalls) for m in directed) * ways
    table = Table(
        "benchmark",
        "questions",
        "protocol",
        "answers at least",
        "first calls",
        "new tokens at most",
        title=f"question benchmarks, {arms} arms or more",
        title_justify="left",
    )
    named = [node.label for node in recipe.benchmarks]
    controls = [label for label, suite in suites.items() if isinstance(suite, Suite) and suite.control]
    for label in (*named, *controls):
        suite = suites[label]
        if not isinstance(suite, Suite):
            said = ("as its harness has it", suite.benchmark.protocol) if suite else ("unknown", "")
            table.add_row(label, *said, "", "", "")
            continue
        n = len(suite.items)
        table.add_row(
            label,
            f"{n:,}",
            suite.protocol,
            f"{n * arms:,}",
            f"{n * firsts:,}" if firsts else "",
            str(suite.new_tokens),
        )
    console.print(table)
    if recipe.seeds:
        console.print(f"once for each of {len(recipe.seeds)} seeds; what follows is for one", highlight=False)


def _asks(method: object) -> bool:
    """Whether a method on prompts is put to question benchmarks."""
    return isinstance(method, PromptMethod) and not method.shots and not changes_nothing(type(method))


def measure(
    recipe: Recipe,
    found: Estimate,
    limit: int | None = None,
    waited: float = 0.0,
    clock: Clock | None = None,
    wanted: Wanted | None = None,
) -> Rehearsal:
    """A rehearsal of the recipe on its model, by ``own_clock`` where no other is given. Raises ``UserError`` where the
    model cannot be loaded or is too large for the device.
    """
    clock = clock or own_clock(device_for(recipe.model.device))
    if found.model and (why := too_small(recipe.model, found.model.bytes)):
        raise UserError(why)
    view, loading = timed(lambda: load(wanted or recipe.model, fetch=False), clock=clock)
    done = rehearse(recipe, view, found.methods, limit, clock)
    done.seconds["check", ("start", "")] = waited + loading
    return done


def _plan_comparison(
    recipe: Recipe,
    model: Wanted,
    console: Console,
    refused: Refusal,
    limit: int | None,
    waited: float,
    device: str | None,
    controls: int,
) -> dict[str, float]:
    """``controls``: how many questions they are. Returns what is known of the stages' seconds."""
    found, measured, computed = estimate(recipe, limit, wanted=model), None, None
    for line in found.missing:
        refused.add(line)
    for line in (*refused.fetched, *found.data.noted):
        say_missing(console, line)
    if device:
        with refused.kept():
            computed = compute(recipe, found, device, model, limit, waited)
    elif found.model and found.data.prompt and not (refused.lines or refused.fetched):
        with refused.kept():
            measured = measure(recipe, found, limit, waited, wanted=model)
    _say_model(console, found.model, recipe)
    if found.model and found.layer is not None:
        above = found.model.depth - found.layer - 1
        console.print(
            f"steered: the output of decoder block {found.layer} (0 to {found.model.depth - 1}); {above} blocks lie"
            " above it",
            highlight=False,
        )
    _say_data(console, recipe, found.data)
    if found.methods:
        console.print(methods_table(found))
    if not found.stages:
        return {}
    more = asked_beside(controls, len(recipe.evaluate.directions), found.methods)
    beside = [*found.beside, *([more] if controls else [])]
    time = computed.time if computed else measured
    listed = [*found.stages[:-1], *(time.beside if time else []), *beside, found.stages[-1]]
    seconds = {s.name: time.of(s) if time else math.nan for s in listed}
    known = {name: s for name, s in seconds.items() if not (isinstance(time, ByFormula) and name in UNCOUNTED)}
    console.print(stages_table(recipe, found, listed, seconds, sum(known.values())))
    tokens = (measured.prompt_tokens, measured.longest) if measured else found.tokens
    if found.model and tokens:
        needed = memory(recipe, found.model, tokens, found.data.prompts)
        guess = (
            ""
            if measured
            else f" (prompts of up to about {tokens[1]} tokens, guessed from their words and the card's image tokens)"
        )
        console.print(
            f"memory: about {gigabytes(needed)} at the fullest moment, beside the libraries{guess}",
            highlight=False,
            soft_wrap=True,
        )
        why = None
        with refused.kept():
            why = too_small(recipe.model, needed)
        if why:
            console.print(f"too large: {why}; use smaller batches", style="yellow", highlight=False)
    if computed:
        for line in computed.told:
            console.print(f"time: {line}", highlight=False, soft_wrap=True)
    elif measured:
        n = "1 prompt" if measured.prompts == 1 else f"{measured.prompts} prompts"
        console.print(
            f"time: each part was done just now, by the model itself, on {n} of about {measured.prompt_tokens} tokens",
            highlight=False,
        )
    else:
        console.print(
            f"time{'' if found.model and tokens else ' and memory'}: unknown until the model and the data are there"
            + ("; computed for a device with --device h100, h200, a100, rtx4090 or cpu" if not device else ""),
            highlight=False,
        )
    console.print(
        "prompt pass: one forward of a whole prompt; a strength's, and a controller's look ahead, run the blocks above"
        " the site alone, which are here counted as their share. Of prompts that begin alike one is a pass, and"
        " what the others say beyond it is none"
    )
    return known


def _plan_training(recipe: Recipe, console: Console, refused: Refusal) -> None:
    from factory.run.plan.practice import training_memory, training_phases
    from factory.run.tuners.scratch import build, curriculum

    if refused.lines:
        return
    view = None
    with refused.kept():
        view = build(recipe, curriculum(recipe))
    if view is None:
        return
    _say_model(console, facts_of(view.model, view.family, view.dtype), recipe)
    console.print(
        f"trained: all parameters, from random weights (seed {recipe.seed}), on lessons of {given(recipe.data).type}",
        highlight=False,
    )
    phases = training_phases(recipe, view)
    table = Table(
        "phase", "steps", "rows a step", "tokens a step", "with padding", "forward and backward passes", "time"
    )
    for p in phases:
        counts = (p.steps, p.rows, p.tokens, p.padded, p.steps * p.rows)
        table.add_row(p.name, *(f"{n:,}" for n in counts), clock_time(p.steps * p.seconds))
    console.print(table)
    console.print(
        f"memory: about {gigabytes(training_memory(view, phases))} for weights, gradients, Adam's moments and"
        " activations",
        highlight=False,
    )
    console.print(
        "time: from one batch of each phase, timed just now; then an examination on the test split", highlight=False
    )


def _say_model(console: Console, model: ModelFacts | None, recipe: Recipe) -> None:
    if model is None:
        console.print("model: unknown", highlight=False)
        return
    parts = ", ".join(f"{name} {_millions(n)}" for name, n in model.parts.items())
    console.print(
        f"model: {model.cls} (family {model.family}), {_millions(model.parameters)} parameters: {parts}",
        highlight=False,
    )
    console.print(f"       {model.dtype}, {gigabytes(model.bytes)} of weights, on {_device(recipe)}", highlight=False)


def _device(recipe: Recipe) -> str:
    try:
        return str(device_for(recipe.model.device))
    except UserError:  # the run's refusal, which ends the plan
        return recipe.model.device


def _say_data(console: Console, recipe: Recipe, data: Data) -> None:
    if not data.samples:
        return
    splits = ", ".join(f"{split} {n:,}" for split, n in data.samples.items())
    asked = " and ".join(data.forms)
    console.print(
        f"data: {given(recipe.data).type}; samples: {splits}; each asked {len(data.forms)} time(s): {asked}",
        highlight=False,
    )


def _millions(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"
