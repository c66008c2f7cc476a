"""A recipe's run, stage by stage. Each stage is computed once, chunk by chunk, and skipped when nothing it reads has
changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from factory import files, report
from factory.bench import conflicts
from factory.benchmark import Rows
from factory.blame import blaming, wrong
from factory.diagnose.claims import judged
from factory.diagnose.summary import Summary
from factory.errors import UserError
from factory.launch.world import World
from factory.model.facts import find_facts, too_small
from factory.model.load import get_parts, load, outline, placement
from factory.model.shown import pictures_once
from factory.model.source import Wanted, find
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.schema import Origin
from factory.report import Questioned
from factory.run.claim.job import check_claim, put_to_the_test
from factory.run.environment import about_run
from factory.run.inputs import each_sample
from factory.run.labels import labels
from factory.run.methods.choose import Choice
from factory.run.methods.comparison import Comparison
from factory.run.methods.cost import measure_costs
from factory.run.methods.divergence import at_equal_divergence
from factory.run.methods.share import swept_samples
from factory.run.methods.study import Study, steered_layer
from factory.run.methods.turned import random_control
from factory.run.pictured import check_columns, check_pictures
from factory.run.questions.arms import Arm
from factory.run.questions.controls import beside, controls
from factory.run.questions.suite import AnySuite, add_prices, put, questions_of, suites
from factory.run.rundir import RunDir
from factory.run.samples import usable_samples
from factory.steer import Steerer, artefact
from factory.steer.collect import ASKS, asks_of
from factory.terminal import Console, warn


def run(recipe: Recipe, limit: int | None = None, world: World | None = None) -> Path:
    """Run a recipe from start to report; returns the run's folder. Started again it does only what is missing.

    ``limit`` takes that many samples of each split (optimiser steps of a training or tuning run) and a folder of its
    own. The ranks of ``world`` share the work; the results do not depend on how many they are. A mistake is told with
    the place of the recipe's key that it is about.
    """
    with blaming(recipe):
        return _run(recipe, limit, world or World())


def _run(recipe: Recipe, limit: int | None, world: World) -> Path:
    check_launch(recipe, world.size)
    world.lockstep = recipe.launch.zero == 3
    if recipe.seeds:
        return run_seeds(recipe, limit, world)
    model = Wanted.of(recipe.model)
    notes = preflight(recipe, model, told=world.first)
    asked = suites(recipe, limit, model)
    check_job(recipe, asked)
    with RunDir.open(*owner_of(recipe, limit), recipe.resolved(), world) as folder:
        Console().print(f"run folder: {folder.path}", soft_wrap=True)
        _work(recipe, model, asked, notes)(recipe, folder, limit)
        world.meet("the end of the run")
    return folder.path


def owner_of(recipe: Recipe, limit: int | None) -> tuple[Path, str, Path, str]:
    """Where runs are kept, the name of this one's folder, and the path and the text of the recipe that owns it."""
    name = recipe.name if limit is None else f"{recipe.name}-limit{limit}"
    return Path(recipe.run.root), name, recipe.source_path or Path(f"{recipe.name}.yaml"), recipe.text


def run_seeds(recipe: Recipe, limit: int | None, world: World) -> Path:
    """Run a recipe once for each of its seeds, then compare the runs; returns the folder of the comparison."""
    single = [
        recipe.model_copy(update={"seed": seed, "seeds": (), "name": f"{recipe.name}-seed{seed}"})
        for seed in recipe.seeds
    ]
    paths = [
        run(one.made_from(Origin(recipe.source_path, recipe.text, recipe.overrides)), limit, world) for one in single
    ]
    folder = Path(recipe.run.root) / (recipe.name if limit is None else f"{recipe.name}-limit{limit}")
    return report.page().beside(paths, folder, recipe.report.plots) if world.first else folder


def _work(
    recipe: Recipe, model: Wanted, asked: Sequence[AnySuite], notes: list[str]
) -> Callable[[Recipe, RunDir, int | None], object]:
    """What a recipe asks for: training from scratch, tuning, a comparison of tuners or of steering methods, the test of
    a claim, or question benchmarks alone.
    """
    if recipe.train or recipe.tune or recipe.compare:
        # Here, and not above: the trainers' libraries are a quarter of the time that a run without training starts in.
        from factory.run.tuners.contest import compare_tuners
        from factory.run.tuners.scratch import train_model
        from factory.run.tuners.tuning import tune_model

        if recipe.train or recipe.tune:
            return train_model if recipe.train else partial(tune_model, model=model, asked=asked)
        return partial(compare_tuners, model=model, asked=asked, notes=notes)
    work = put_to_the_test if recipe.claim else compare if recipe.data else examine
    return partial(work, model=model, asked=asked, notes=notes)


def check_launch(recipe: Recipe, ranks: int) -> None:
    """Raises ``UserError`` where a recipe cannot run on so many ranks, or not be reported as it asks."""
    report.check_reports(recipe.report.also)
    if recipe.train and ranks > 1:
        raise UserError("train: this recipe trains in one process; leave launch.processes at 1")
    trained, section = recipe.tune or recipe.compare, "tune" if recipe.tune else "compare"
    if trained and trained.optimizer == "sam" and (ranks > 1 or recipe.launch.zero):
        raise UserError(
            f"{section}.optimizer: sam takes a step's gradient twice, which DeepSpeed's engine does not do; leave"
            f" launch.processes at 1 and launch.zero at 0, or use {section}.optimizer=adamw"
        )
    if recipe.launch.zero == 3 and ranks == 1 and not (recipe.tune or recipe.compare):
        raise UserError(
            "launch.zero: 3 cuts the model over processes, and there is one; add launch.processes=N, or launch.zero=0"
        )


def check_job(recipe: Recipe, asked: Sequence[AnySuite], ranks: int | None = None) -> None:
    """Check what a recipe's job asks of its keys, of as many ``ranks`` or those there are; ``asked`` are those of its
    benchmarks that could be made. Raises ``UserError``.
    """
    if recipe.train or recipe.tune or recipe.compare:
        from factory.run.tuners import checked, contest, scratch

        if recipe.train:
            scratch.check_training(recipe)
        elif recipe.tune:
            checked.check(recipe.tune, recipe.model, ranks=ranks, launch=recipe.launch)
        else:
            contest.check_contest(recipe, {suite.node.label: suite for suite in asked}, ranks)
    if recipe.claim:
        check_claim(recipe)
    if recipe.collect.contrast == "pairs" and recipe.data and not conflicts(recipe.data).has_pairs:
        line = f"'{recipe.data.type}' sets no prompts against each other; leave contrast out to contrast instructions"
        raise wrong(recipe.collect, "contrast", line)
    controls(recipe)
    measured = recipe.diagnostic.type if recipe.diagnostic else None
    given = [node.type for node in recipe.diagnostics]
    for node in recipe.steering:
        method = node.make()
        if isinstance(method, Steerer) and (why := method.unfit(measured, given)):
            raise wrong(node, "type", why)


def compare(
    recipe: Recipe, folder: RunDir, limit: int | None, model: Wanted, asked: Sequence[AnySuite], notes: Sequence[str]
) -> None:
    """Diagnose, fit, choose on dev, score on test; write results.json and the report."""
    checked = usable_samples(
        recipe, conflicts(recipe.data), folder, limit, outline(model)
    )  # told before weights are read
    asked = [*asked, *beside(recipe, limit, model)]
    torch.manual_seed(recipe.seed)
    study = Study(recipe, folder, load(model, recipe.launch.zero), limit, checked)
    with pictures_once(study.view):
        diagnostics, further = study.diagnosed(), study.investigated
        comparison = Comparison(study)
        predictions, choices = comparison.run()
        measured = measured_beside(comparison, predictions)
    answered = (
        put(folder, study.view, asked, [*comparison.arms(), *saved_arms(recipe, study.view)]) if asked else ([], [])
    )
    costs, prices = measure_costs(comparison) if recipe.evaluate.cost else (None, {})
    if folder.world.first:
        if prices:
            add_prices(folder.path, prices)
        conclude(
            study,
            (diagnostics, further),
            predictions,
            choices,
            answered,
            notes,
            [costs] if costs else [],
            questions_of(asked),
            measured,
        )


def measured_beside(comparison: Comparison, predictions: Rows) -> dict[str, Summary]:
    """What stands beside the steering table, by name: vectors turned at random, and strengths at equal divergence."""
    found = {
        "random": random_control(comparison, predictions),
        "divergence": at_equal_divergence(comparison, predictions),
    }
    return {f"beside-{name}": summary for name, summary in found.items() if summary}


def conclude(
    study: Study,
    diagnosed: tuple[Rows, Mapping[str, Rows]],
    predictions: Rows,
    choices: list[Choice],
    answered: tuple[Rows, Rows],
    notes: Sequence[str],
    costs: Sequence[Summary],
    asked: Questioned | None = None,
    beside: Mapping[str, Summary] | None = None,
) -> None:
    """Write results.json and the report; ``answered``: rows and skipped samples of the question benchmarks ``asked``;
    ``costs`` differ from run to run, so the report alone has them; ``beside``: what was measured of the methods."""
    diagnostics, further = diagnosed
    recipe, folder = study.recipe, study.folder
    summaries = {**judged(_summaries(study, diagnostics, further)), **(beside or {})}
    results = results_of(study, predictions, choices, summaries, notes)
    results["rows"] += answered[0]
    results["run"]["skipped"] += answered[1]
    files.write_json(folder.path / "results.json", results)
    items = each_sample(s for samples in study.samples.values() for s in samples)
    rows = diagnostics + [row for rows in further.values() for row in rows]
    told = [*summaries.values(), *costs]
    found = report.Finished(
        folder.path,
        results,
        study.benchmark,
        recipe.report.plots,
        told,
        rows,
        predictions,
        items,
        study.samples["test"],
        asked or {},
        study.limit,
    )
    page = report.write(found, recipe.report.also)
    Console().print(f"results: {folder.path / 'results.json'}\nreport:  {page}", soft_wrap=True)


def _summaries(study: Study, diagnostics: Rows, further: Mapping[str, Rows]) -> dict[str, Summary]:
    """What the recipe's ``diagnostic:`` and its ``diagnostics:`` say of their rows, by label."""
    recipe, found = study.recipe, {}
    if recipe.diagnostic and study.diagnostic and diagnostics:
        label = recipe.diagnostic.label
        places = dict(zip(ASKS, asks_of(study.benchmark.sources), strict=True))
        prompts = {places.get(prompt, prompt) for prompt in study.diagnostic.summarised}
        rows = [row for row in diagnostics if row["prompt"] in prompts]
        found[f"diagnostic-{label}" if label in further else label] = study.diagnostic.summary(rows)
    found |= {node.label: study.diagnostic_of(node).summary(further[node.label]) for node in recipe.diagnostics}
    told = {label: summary for label, summary in found.items() if summary is not None}
    times = Counter(summary.title for summary in told.values())
    return {label: summary.under(label, titled=times[summary.title] > 1) for label, summary in told.items()}


def preflight(recipe: Recipe, model: Wanted, told: bool = True, fetch: bool = True) -> list[str]:
    """Check what can be checked without weights or a run folder: files, device, layer, artefacts. Returns what has to
    be known beside the numbers, and prints it where it is to be ``told``; parts of the model that are not here are
    fetched, unless ``fetch`` is off.

    Raises ``UserError`` for whatever would stop the run.
    """
    if recipe.train:
        return []
    source = find(model)
    placement(model)
    check_pictures(recipe, source.family)
    check_columns(recipe, source.config)
    steered_layer(recipe, source.config.get_text_config().num_hidden_layers, source.card)
    if fetch:
        get_parts(model)
    if torch.cuda.is_available() and (facts := find_facts(model)[0]) and (why := too_small(recipe.model, facts.bytes)):
        raise UserError(
            f"model: {why} for its weights alone; use model.quantize=4bit, model.device_map=auto over several GPUs, or"
            " a smaller model"
        )
    for i, folder in enumerate(map(Path, recipe.artefacts)):
        with blaming(recipe, "artefacts", i):
            artefact.check_folder(folder.expanduser())
    check_names(recipe)
    notes = [*(conflicts(recipe.data).warnings if recipe.data else ()), *source.notes]
    for note in notes if told else ():
        warn(note)
    return notes


def check_names(recipe: Recipe) -> None:
    """Raises ``UserError`` where a saved artefact would be called as another arm of the recipe is, whose answers would
    then lie in the same files."""
    own = {
        labels(recipe).unsteered,
        *(f"{node.label}-{way}" for node in recipe.steering for way in recipe.evaluate.directions),
    }
    for i, folder in enumerate(recipe.artefacts):
        if (name := arm_name(Path(folder))) in own:
            raise UserError(
                f"artefacts.{i}: {folder} is named after its folder, and another row is called '{name}' too; give a"
                " copy of the folder another name"
            )
        own.add(name)


def arm_name(folder: Path) -> str:
    """What the arm of a saved artefact is called."""
    return folder.expanduser().absolute().name


def examine(
    recipe: Recipe, folder: RunDir, limit: int | None, model: Wanted, asked: Sequence[AnySuite], notes: Sequence[str]
) -> None:
    """Put question benchmarks to the model as it is and to saved artefacts; write results.json and the report."""
    view = load(model, recipe.launch.zero)
    rows, skipped = put(folder, view, asked, [Arm(labels(recipe).unsteered), *saved_arms(recipe, view)])
    if not folder.world.first:
        return
    results = {"schema": 1, "run": {**about_run(recipe, view, notes), "skipped": skipped}, "rows": rows}
    files.write_json(folder.path / "results.json", results)
    found = report.Finished(
        folder.path, results, asked[0].benchmark, recipe.report.plots, asked=questions_of(asked), limit=limit
    )
    page = report.write(found, recipe.report.also)
    Console().print(f"results: {folder.path / 'results.json'}\nreport:  {page}", soft_wrap=True)


def saved_arms(recipe: Recipe, view: ModelView) -> list[Arm]:
    """The recipe's artefacts, each named after its folder. Raises ``UserError`` for one that was made for another
    model.
    """
    return [_saved_arm(Path(folder), view) for folder in recipe.artefacts]


def _saved_arm(folder: Path, view: ModelView) -> Arm:
    steering = artefact.load(folder.expanduser(), view)
    assert isinstance(steering.strength, float), "an artefact holds one number as its strength"
    return Arm(arm_name(folder), None, steering.strength, "", steering)


def results_of(
    study: Study, predictions: Rows, choices: list[Choice], summaries: Mapping[str, Summary], notes: Sequence[str]
) -> dict[str, Any]:
    """The content of results.json; nothing in it depends on when or how often the run was started."""
    recipe, skipped = study.recipe, study.skipped
    about = {
        **about_run(recipe, study.view, notes),
        "error_budget": recipe.evaluate.error_budget,
        "choices": [asdict(c) for c in choices],
        "skipped": list(skipped),
    }
    if (share := recipe.evaluate.curve_share) < 1:
        about["curve"] = {"share": share, "samples": len(swept_samples(study.samples["test"], share))}
    about["model"] |= {"card": study.card.name if study.card else None, "layer": study.layer}
    known = {"known": recipe.evaluate.known} if recipe.evaluate.known else {}
    rows = study.benchmark.rows(predictions, seed=recipe.seed, skipped=len(skipped), **known)
    return {
        "schema": 1,
        "run": about,
        "rows": rows,
        "diagnostics": {label: summary.record() for label, summary in summaries.items() if summary.shown},
    }
