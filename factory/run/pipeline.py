"""A recipe's run, stage by stage. Each stage is computed once, chunk by chunk, and skipped when nothing it reads has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from factory import files
from factory.model.load import find, fingerprint, load
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.schema import Source
from factory.registry import lookup
from factory.run.arms import Arm
from factory.run.choose import Choice
from factory.run.comparison import Comparison
from factory.run.environment import environment
from factory.run.rundir import RunDir
from factory.run.study import Rows, Study, make
from factory.run.suite import Suite, put, suites
from factory.run.training import train_model
from factory.steer import artefact
from factory.summary import Summary


def run(recipe: Recipe, limit: int | None = None) -> Path:
    """Run a recipe from start to report; returns the run's folder. Started again it does only what is missing.

    ``limit`` takes that many samples of each split (optimiser steps of a training run) and a folder of its own.
    """
    if recipe.seeds:
        return run_seeds(recipe, limit)
    if recipe.train is None:
        find(recipe.model)
    for folder in map(Path, recipe.artefacts):
        artefact.check_folder(folder.expanduser())
    asked = suites(recipe, limit)
    source = recipe.source_path or Path(f"{recipe.name}.yaml")
    name = recipe.name if limit is None else f"{recipe.name}-limit{limit}"
    with RunDir.open(Path(recipe.run.root), name, source, recipe.text, recipe.resolved()) as folder:
        Console().print(f"run folder: {folder.path}", soft_wrap=True)
        if recipe.train:
            train_model(recipe, folder, limit)
        elif recipe.data:
            compare(recipe, folder, limit, asked)
        else:
            examine(recipe, folder, asked)
    return folder.path


def run_seeds(recipe: Recipe, limit: int | None) -> Path:
    """Run a recipe once for each of its seeds, then compare the runs; returns the folder of the comparison."""
    single = [recipe.model_copy(update={"seed": seed, "seeds": (), "name": f"{recipe.name}-seed{seed}"}) for seed in recipe.seeds]
    paths = [run(one.made_from(Source(recipe.source_path, recipe.text, recipe.overrides)), limit) for one in single]
    return lookup("command", "compare").over(paths, Path(recipe.run.root) / (recipe.name if limit is None else f"{recipe.name}-limit{limit}"))


def compare(recipe: Recipe, folder: RunDir, limit: int | None, asked: Sequence[Suite]) -> None:
    """Diagnose, fit, choose on dev, score on test; write results.json and the report."""
    torch.manual_seed(recipe.seed)
    study = Study(recipe, folder, load(recipe.model), limit)
    diagnostics, further = study.diagnosed(), study.investigated()
    comparison = Comparison(study)
    predictions, choices = comparison.run()
    rows, skipped = put(folder, study.view, asked, [*comparison.arms(), *saved_arms(recipe, study.view)]) if asked else ([], [])
    summaries = {node.label: make(node).summary(further[node.label]) for node in recipe.diagnostics}
    summaries = {label: summary for label, summary in summaries.items() if summary is not None}
    results = gather(study, predictions, choices, summaries)
    results["rows"] += rows
    results["run"]["skipped"] += skipped
    files.write_json(folder.path / "results.json", results)
    study.benchmark.keep(folder.path, predictions, recipe.seed)
    recipe_yaml = (folder.path / "resolved.yaml").read_text(encoding="utf-8")
    rows = diagnostics + [row for rows in further.values() for row in rows]
    page = study.benchmark.report(folder.path, results, rows, predictions, recipe_yaml, recipe.report.plots, tuple(summaries.values()))
    Console().print(f"results: {folder.path / 'results.json'}\nreport:  {page}", soft_wrap=True)


def examine(recipe: Recipe, folder: RunDir, asked: Sequence[Suite]) -> None:
    """Put question benchmarks to the model as it is and to saved artefacts; write results.json and the report."""
    view = load(recipe.model)
    rows, skipped = put(folder, view, asked, [Arm(), *saved_arms(recipe, view)])
    about = {**about_run(recipe, view), "skipped": skipped}
    results = {"schema": 1, "run": about, "rows": rows}
    files.write_json(folder.path / "results.json", results)
    recipe_yaml = (folder.path / "resolved.yaml").read_text(encoding="utf-8")
    page = asked[0].benchmark.report(folder.path, results, recipe_yaml, recipe.report.plots)
    lookup("command", "compare").over([folder.path], folder.path / "comparison")
    Console().print(f"results: {folder.path / 'results.json'}\nreport:  {page}", soft_wrap=True)


def saved_arms(recipe: Recipe, view: ModelView) -> list[Arm]:
    """The recipe's artefacts, each named after its folder. Raises ``UserError`` for one that was made for another model."""
    return [Arm(path.name, None, s.strength, "", s) for path in map(Path, recipe.artefacts) for s in [artefact.load(path.expanduser(), view)]]


def gather(study: Study, predictions: Rows, choices: list[Choice], summaries: Mapping[str, Summary]) -> dict[str, Any]:
    """The content of results.json; nothing in it depends on when or how often the run was started."""
    recipe, skipped = study.recipe, study.checked[1]
    about = {
        **about_run(recipe, study.view), "error_budget": recipe.evaluate.error_budget, "choices": [asdict(c) for c in choices], "skipped": list(skipped),
    }  # fmt: skip
    about["model"]["layer"] = study.layer
    rows = study.benchmark.rows(predictions, seed=recipe.seed, skipped=len(skipped))
    return {"schema": 1, "run": about, "rows": rows, "diagnostics": {label: summary.record() for label, summary in summaries.items()}}


def about_run(recipe: Recipe, view: ModelView) -> dict[str, Any]:
    source = recipe.source_path.name if recipe.source_path else recipe.name
    model = {"class": type(view.model).__name__, "fingerprint": fingerprint(view)}
    return {"name": recipe.name, "recipe": source, "seed": recipe.seed, "model": model, "libraries": environment()["libraries"]}
