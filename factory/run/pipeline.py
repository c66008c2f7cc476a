"""A recipe's run, stage by stage. Each stage is computed once, chunk by chunk, and skipped when nothing it reads has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from factory import files
from factory.model.load import find, fingerprint, load
from factory.recipe import Recipe
from factory.run.choose import Choice
from factory.run.comparison import Comparison
from factory.run.environment import environment
from factory.run.rundir import RunDir
from factory.run.study import Rows, Study, make
from factory.run.training import train_model
from factory.summary import Summary


def run(recipe: Recipe, limit: int | None = None) -> Path:
    """Run a recipe from start to report; returns the run's folder. Started again it does only what is missing.

    ``limit`` takes that many samples of each split (optimiser steps of a training run) and a folder of its own.
    """
    if recipe.train is None:
        find(recipe.model)
    source = recipe.source_path or Path(f"{recipe.name}.yaml")
    name = recipe.name if limit is None else f"{recipe.name}-limit{limit}"
    with RunDir.open(Path(recipe.run.root), name, source, recipe.text, recipe.resolved()) as folder:
        Console().print(f"run folder: {folder.path}", soft_wrap=True)
        (train_model if recipe.train else compare)(recipe, folder, limit)
    return folder.path


def compare(recipe: Recipe, folder: RunDir, limit: int | None) -> None:
    """Diagnose, fit, choose on dev, score on test; write results.json and the report."""
    torch.manual_seed(recipe.seed)
    study = Study(recipe, folder, load(recipe.model), limit)
    diagnostics, further = study.diagnosed(), study.investigated
    predictions, choices = Comparison(study).run()
    summaries = {node.label: make(node).summary(further[node.label]) for node in recipe.diagnostics}
    summaries = {label: summary.under(label) for label, summary in summaries.items() if summary is not None}
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
