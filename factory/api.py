"""What ``import factory`` offers a notebook: load, fit, steered, states, run_recipe, read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from factory import cli, files
from factory.data.prompt import Prompt
from factory.errors import UserError, did_you_mean
from factory.model.load import load as load_model
from factory.model.prefix import prefill
from factory.model.source import spec_named
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe import load as load_recipe
from factory.recipe.explain import told_in_one_line
from factory.recipe.nodes import node_of
from factory.recipe.schema import Direction
from factory.recipe.sections.steering import Position
from factory.run.methods.cells import placed
from factory.run.methods.comparison import Comparison
from factory.run.methods.study import study_aside
from factory.run.pipeline import run
from factory.steer import Steerer, Steering, Strength, artefact, steer
from factory.steer.collect import Plan, collect, joined, read_position, states_toward
from factory.steer.where import ROLES, Where

Source = str | Mapping[str, Any] | Sequence[Prompt]
"""Prompts of one's own, or a benchmark: its name or its node, as in ``{"type": "mc2", "images": "data/coco"}``."""
By = str | Path | Steering
BATCH = 32
SAMPLE_TEXTS = ("question", "context", "answer_vision", "answer_text", "prompt")


def load(model: str | Path, **options: Any) -> ModelView:
    """A model, checked and frozen: a card of the zoo by its name, a folder, or a hub id OWNER/NAME.

    ``options`` are the keys of a recipe's ``model:`` (dtype, device, quantize, tuned, …). Raises ``UserError`` for a
    model that is not there or not understood.
    """
    return load_model(spec_named(str(model), **options))


def fit(
    view: ModelView,
    method: str | Mapping[str, Any],
    data: Source,
    direction: Direction = "vision",
    *,
    diagnostic: str | Mapping[str, Any] | None = None,
    layer: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Steering:
    """A steering method, fitted toward ``direction`` on the training split of a benchmark or on prompts of one's own.

    ``method`` and ``diagnostic`` are nodes as a recipe has them: a name, or a mapping with ``type`` and parameters.
    ``layer`` null is that of the model's card, else its middle block; ``limit`` takes that many samples of each split.
    The result goes to ``steered`` and to ``factory.steer.artefact.save``. Raises ``UserError`` for a node that a recipe
    would refuse, and for a method that fits nothing (prompt and decoding methods), that leaves a choice to dev data (a
    recipe chooses), or that needs a benchmark's verdicts where only prompts were given.
    """
    node = node_of("steering", method)
    made = node.make()
    if not isinstance(made, Steerer):
        raise UserError(f"steering '{node.type}' changes the prompt or the decoding, and has nothing to fit")
    if made.variants():
        raise UserError(
            f"steering '{node.type}' chooses among {', '.join(made.variants())} on dev data: fix its choice, or run a"
            " recipe"
        )
    layer = view.layer if layer is None else layer
    if not isinstance(data, str | Mapping):
        return _fitted_on(view, made, data, direction, layer, seed)
    asked = {
        "name": "fit",
        "seed": seed,
        "model": {"path": "."},
        "data": node_of("benchmark", data),
        "diagnostic": diagnostic and node_of("diagnostic", diagnostic),
        "collect": {"layer": layer},
        "steering": [node],
        "evaluate": {"directions": [direction]},
    }
    with told_in_one_line("fit", Recipe):
        recipe = Recipe.model_validate(asked)
    with study_aside(recipe, view, limit) as study:
        [fitted] = Comparison(study).ready
    return placed(fitted, study.layer)


def _fitted_on(
    view: ModelView, method: Steerer, prompts: Sequence[Prompt], direction: Direction, layer: int | None, seed: int
) -> Steering:
    if method.trial_strengths:
        raise UserError(f"steering '{method.name}' learns from a benchmark's verdicts: give a benchmark as data")
    [layer] = _blocks(view, [view.depth // 2 if layer is None else layer])
    _some(prompts)
    plan, keys = Plan(layer, tails=method.reads_tails), [str(i) for i in range(len(prompts))]
    parts = [
        collect(view, prompts[i : i + BATCH], plan, None, keys[i : i + BATCH])[0] for i in range(0, len(prompts), BATCH)
    ]
    states = states_toward(direction, joined(parts), ["all"] * len(prompts), seed, sources=prompts[0].sources)
    state = method.fit(states)
    return Steering(method, state, method.placed(state, layer))


@contextmanager
def steered(view: ModelView, by: By | Sequence[By], strength: Strength | None = None) -> Iterator[ModelView]:
    """Steer every forward of ``view.model`` inside the block, by fitted methods or the folders of artefacts.

    ``strength`` replaces that of each: a number, one number a prompt [B], or a controller (see ``factory.steer``).
    """
    given = [by] if isinstance(by, str | Path | Steering) else list(by)
    steerings = [each if isinstance(each, Steering) else artefact.load(each, view) for each in given]
    if strength is not None:
        steerings = [replace(each, strength=strength) for each in steerings]
    with steer(view, steerings):
        yield view


def states(
    view: ModelView,
    prompts: Source,
    layers: int | Sequence[int] | None = None,
    positions: str = "last",
    *,
    limit: int | None = None,
    batch_size: int = BATCH,
) -> Tensor:
    """Activations [prompts, layers, width] (float32, on the CPU): outputs of decoder blocks at a place of each prompt.

    ``layers`` are 0-based blocks, null all. ``positions``: last, second_last, last_user_token or mean_prompt (SPEC
    A14), or a role (image, context, question, …) for the mean over its tokens. ``prompts`` may be a benchmark, whose
    first ``limit`` test samples are taken in each form. What steers the model steers here too. Raises ``UserError`` for
    a layer or a place that the model or the prompts lack, and for a benchmark that a recipe would refuse.
    """
    blocks = _blocks(view, range(view.depth) if layers is None else [layers] if isinstance(layers, int) else layers)
    if isinstance(prompts, str | Mapping):
        prompts = _prompts_of(prompts, limit)
    _some(prompts)
    found = [_read(view, prompts[i : i + batch_size], blocks, positions) for i in range(0, len(prompts), batch_size)]
    return torch.cat(found)


def _blocks(view: ModelView, layers: Sequence[int]) -> Sequence[int]:
    if wrong := [i for i in layers if not 0 <= i < view.depth]:
        raise UserError(f"layers {wrong}: the model has decoder blocks 0 to {view.depth - 1}")
    return layers


def _some(prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise UserError("no prompts were given: give a list of some, or a benchmark")


def _prompts_of(source: str | Mapping[str, Any], limit: int | None) -> list[Prompt]:
    benchmark = node_of("benchmark", source).make()
    samples = list(benchmark.samples("test"))[:limit]
    return [benchmark.prompt(sample, form) for sample in samples for form in benchmark.forms]


@torch.no_grad()
def _read(view: ModelView, prompts: Sequence[Prompt], blocks: Sequence[int], positions: str) -> Tensor:
    batch = view.encode(prompts)
    seen: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(module: Any, args: Any, output: Tensor) -> None:
            seen[layer] = _at(output.to(view.device), batch.attention_mask, batch.roles, positions)

        return read

    handles = [view.layers[layer].register_forward_hook(reader(layer)) for layer in blocks]
    try:
        prefill(view, batch)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([seen[layer] for layer in blocks], 1).float().cpu()


def _at(output: Tensor, mask: Tensor, roles: Tensor, positions: str) -> Tensor:
    if positions in get_args(Position):
        return read_position(output, mask, roles, positions)
    if positions not in ROLES or positions == "none":
        known = [*get_args(Position), *(role for role in ROLES if role != "none")]
        raise UserError(f"positions '{positions}' is none of {', '.join(known)}.{did_you_mean(positions, known)}")
    on = Where.model_validate({"role": positions}).mask(roles)
    if not bool(on.any(-1).all()):
        raise UserError(f"positions '{positions}': a prompt has no such token")
    return (output.float() * on[..., None]).sum(1) / on.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Run:
    """A finished run: its ``folder`` and what ``results.json`` says."""

    folder: Path
    results: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a number: benchmark, split, task, direction, method, strength, n, metrics, ci, …"""
        return list(self.results["rows"])

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """One dictionary an answer, of all benchmarks and methods."""
        return [row for _, row in self._predictions]

    @cached_property
    def _predictions(self) -> list[tuple[str, dict[str, Any]]]:
        """Each with the name of the benchmark's folder."""
        kept = sorted((self.folder / "predictions").rglob("*.jsonl"))
        return [(path.parent.name, row) for path in kept for row in files.read_jsonl(path)]

    @property
    def samples(self) -> list[dict[str, Any]]:
        """One dictionary a test sample: benchmark, sample, task, what the run kept of its texts (question, context,
        answer_vision, answer_text; of two texts those of each name), and by METHOD-DIRECTION the ``answers``, and the
        ``outcomes`` or scores.
        """
        table: dict[tuple[str, str], dict[str, Any]] = {}
        for benchmark, p in self._predictions:
            about = {"benchmark": benchmark, "sample": p["sample"], "task": next(iter(p.get("tasks") or ()), None)}
            named = (name for name in p if name.startswith(("context_", "answer_")))
            texts = {name: p[name] for name in dict.fromkeys((*SAMPLE_TEXTS, *named)) if name in p}
            row = table.setdefault((benchmark, p["sample"]), {**about, **texts, "answers": {}, "outcomes": {}})
            arm = "-".join(filter(None, (p["method"], p.get("direction"))))
            said = p.get("answers", p.get("text"))
            row["answers"][arm] = said[0] if isinstance(said, list) and len(said) == 1 else said
            row["outcomes"][arm] = p.get("outcome", p.get("value"))
        return list(table.values())

    @property
    def artefacts(self) -> dict[str, Path]:
        """Folders of the fitted methods by name, for ``steered``."""
        kept = self.folder / "artefacts"
        return {path.name: path for path in sorted(kept.iterdir())} if kept.is_dir() else {}

    @property
    def report(self) -> Path:
        """The report's page."""
        return self.folder / "report" / "index.html"


def run_recipe(recipe: str | Path | Recipe, *overrides: str, limit: int | None = None) -> Run:
    """Run a recipe (a file, the name of a bundled one, or one in memory) as the command line does, and read the run.

    ``overrides`` are ``KEY=VALUE``. Started again, it does only what is missing.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(cli.find_recipe(str(recipe)), overrides)
    return read(run(recipe, limit))


def read(folder: str | Path) -> Run:
    """A finished run by its folder. Raises ``UserError`` where there is none, or its results are damaged."""
    path = Path(folder).expanduser() / "results.json"
    if not path.is_file():
        raise UserError(f"{folder}: no finished run (it has no results.json)")
    results = files.read_json(path)
    if not (isinstance(results, dict) and isinstance(results.get("rows"), list)):
        raise UserError(f"{path}: not the results of a run (it should be a mapping with a list of rows)")
    return Run(path.parent, results)
