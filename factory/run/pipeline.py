"""A recipe's run, stage by stage. Each stage is computed once, chunk by chunk, and skipped when nothing it reads has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from factory import files
from factory.errors import UserError
from factory.model.load import fingerprint, load, placement
from factory.model.source import find
from factory.recipe import Recipe
from factory.run.calibrate import too_small
from factory.run.choose import Choice
from factory.run.comparison import Comparison
from factory.run.environment import environment
from factory.run.estimate import find_facts
from factory.run.rundir import RunDir
from factory.run.samples import usable_samples
from factory.run.study import Rows, Study, make, steered_layer
from factory.run.training import train_model
from factory.summary import Summary


def run(recipe: Recipe, limit: int | None = None) -> Path:
    """Run a recipe from start to report; returns the run's folder. Started again it does only what is missing.

    ``limit`` takes that many samples of each split (optimiser steps of a training run) and a folder of its own.
    """
    notes = prepare(recipe) if recipe.train is None else []
    source = recipe.source_path or Path(f"{recipe.name}.yaml")
    name = recipe.name if limit is None else f"{recipe.name}-limit{limit}"
    with RunDir.open(Path(recipe.run.root), name, source, recipe.text, recipe.resolved()) as folder:
        Console().print(f"run folder: {folder.path}", soft_wrap=True)
        train_model(recipe, folder, limit) if recipe.train else compare(recipe, folder, limit, notes)
    return folder.path


def compare(recipe: Recipe, folder: RunDir, limit: int | None, notes: list[str]) -> None:
    """Diagnose, fit, choose on dev, score on test; write results.json and the report."""
    usable_samples(recipe, make(recipe.data), folder, limit)  # told before weights are read
    torch.manual_seed(recipe.seed)
    study = Study(recipe, folder, load(recipe.model), limit)
    diagnostics, further = study.diagnosed(), study.investigated()
    predictions, choices = Comparison(study).run()
    summaries = {node.label: make(node).summary(further[node.label]) for node in recipe.diagnostics}
    summaries = {label: summary for label, summary in summaries.items() if summary is not None}
    results = gather(study, predictions, choices, summaries, notes)
    files.write_json(folder.path / "results.json", results)
    recipe_yaml = (folder.path / "resolved.yaml").read_text(encoding="utf-8")
    rows = diagnostics + [row for rows in further.values() for row in rows]
    page = study.benchmark.report(folder.path, results, rows, predictions, recipe_yaml, recipe.report.plots, tuple(summaries.values()))
    Console().print(f"results: {folder.path / 'results.json'}\nreport:  {page}", soft_wrap=True)


def prepare(recipe: Recipe) -> list[str]:
    """Check what can be checked without weights or a run folder: files, device, layer. Returns what has to be known beside the numbers.

    Raises ``UserError`` for whatever would stop the run.
    """
    source = find(recipe.model)
    placement(recipe.model)
    steered_layer(recipe, source.config.get_text_config().num_hidden_layers, source.card)
    if torch.cuda.is_available() and (model := find_facts(recipe.model)[0]) and (why := too_small(recipe.model, model.bytes)):
        raise UserError(f"model: {why} for its weights alone; use model.quantize=4bit, model.device_map=auto over several GPUs, or a smaller model")
    notes = [*getattr(make(recipe.data), "warnings", ()), *filter(None, [source.note])]
    for note in notes:
        Console(stderr=True).print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return notes


def gather(study: Study, predictions: Rows, choices: list[Choice], summaries: Mapping[str, Summary], notes: list[str]) -> dict[str, Any]:
    """The content of results.json; nothing in it depends on when or how often the run was started."""
    recipe, skipped = study.recipe, study.skipped
    source = recipe.source_path.name if recipe.source_path else recipe.name
    card = study.card.name if study.card else None
    model = {"class": type(study.view.model).__name__, "card": card, "fingerprint": fingerprint(study.view), "layer": study.layer}
    about = {
        "name": recipe.name, "recipe": source, "seed": recipe.seed, "model": model, "libraries": environment()["libraries"],
        "error_budget": recipe.evaluate.error_budget, "choices": [asdict(c) for c in choices], "skipped": skipped, "notes": notes,
    }  # fmt: skip
    rows = study.benchmark.rows(predictions, seed=recipe.seed, skipped=len(skipped))
    return {"schema": 1, "run": about, "rows": rows, "diagnostics": {label: summary.record() for label, summary in summaries.items()}}
