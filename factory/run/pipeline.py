"""A recipe's run, stage by stage. Each stage is computed once, chunk by chunk, and skipped when nothing it reads has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from factory import files
from factory.errors import UserError
from factory.launch.world import World
from factory.model.load import find, fingerprint, load
from factory.recipe import Recipe
from factory.run.choose import Choice
from factory.run.comparison import Comparison
from factory.run.environment import environment
from factory.run.rundir import RunDir
from factory.run.study import Rows, Study, make
from factory.run.training import train_model
from factory.run.tuning import tune_model
from factory.summary import Summary


def run(recipe: Recipe, limit: int | None = None, world: World | None = None) -> Path:
    """Run a recipe from start to report; returns the run's folder. Started again it does only what is missing.

    ``limit`` takes that many samples of each split (optimiser steps of a training or tuning run) and a folder of its own. The
    ranks of ``world`` share the work; the results do not depend on how many they are.
    """
    world = world or World()
    _check_launch(recipe, world)
    if recipe.train is None:
        find(recipe.model)
    source = recipe.source_path or Path(f"{recipe.name}.yaml")
    name = recipe.name if limit is None else f"{recipe.name}-limit{limit}"
    with RunDir.open(Path(recipe.run.root), name, source, recipe.text, recipe.resolved(), world) as folder:
        Console().print(f"run folder: {folder.path}", soft_wrap=True)
        _work(recipe)(recipe, folder, limit)
        world.meet("the end of the run")
    return folder.path


def _work(recipe: Recipe) -> Callable[[Recipe, RunDir, int | None], object]:
    """What a recipe asks for: training from scratch, tuning, or a comparison of steering methods."""
    return train_model if recipe.train else tune_model if recipe.tune else compare


def _check_launch(recipe: Recipe, world: World) -> None:
    if recipe.train and world.size > 1:
        raise UserError("train: this recipe trains in one process; leave launch.processes at 1")
    if recipe.launch.zero == 3 and world.size == 1 and recipe.tune is None:
        raise UserError("launch.zero: 3 cuts the model over processes, and there is one; add launch.processes=N, or launch.zero=0")
    world.lockstep = recipe.launch.zero == 3


def compare(recipe: Recipe, folder: RunDir, limit: int | None) -> None:
    """Diagnose, fit, choose on dev, score on test; write results.json and the report."""
    torch.manual_seed(recipe.seed)
    study = Study(recipe, folder, load(recipe.model, recipe.launch.zero), limit)
    diagnostics, further = study.diagnosed(), study.investigated()
    predictions, choices = Comparison(study).run()
    if folder.world.first:
        conclude(study, diagnostics, further, predictions, choices)


def conclude(study: Study, diagnostics: Rows, further: Mapping[str, Rows], predictions: Rows, choices: list[Choice]) -> None:
    """Write results.json and the report."""
    recipe, folder = study.recipe, study.folder
    summaries = {node.label: make(node).summary(further[node.label]) for node in recipe.diagnostics}
    summaries = {label: summary for label, summary in summaries.items() if summary is not None}
    results = gather(study, predictions, choices, summaries)
    files.write_json(folder.path / "results.json", results)
    recipe_yaml = (folder.path / "resolved.yaml").read_text(encoding="utf-8")
    rows = diagnostics + [row for rows in further.values() for row in rows]
    page = study.benchmark.report(folder.path, results, rows, predictions, recipe_yaml, recipe.report.plots, tuple(summaries.values()))
    Console().print(f"results: {folder.path / 'results.json'}\nreport:  {page}", soft_wrap=True)


def gather(study: Study, predictions: Rows, choices: list[Choice], summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """The content of results.json; nothing in it depends on when or how often the run was started."""
    recipe, skipped = study.recipe, study.checked[1]
    source = recipe.source_path.name if recipe.source_path else recipe.name
    model = {"class": type(study.view.model).__name__, "fingerprint": fingerprint(study.view), "layer": study.layer}
    about = {
        "name": recipe.name, "recipe": source, "seed": recipe.seed, "model": model, "libraries": environment()["libraries"],
        "error_budget": recipe.evaluate.error_budget, "choices": [asdict(c) for c in choices], "skipped": skipped,
    }  # fmt: skip
    rows = study.benchmark.rows(predictions, seed=recipe.seed, skipped=len(skipped))
    return {"schema": 1, "run": about, "rows": rows, "diagnostics": {label: summary.record() for label, summary in summaries.items()}}
