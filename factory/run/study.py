"""What a run knows of its model and data: usable samples, training states, diagnosis. Each is a stage of the run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, facts
from factory.errors import UserError
from factory.model.load import fingerprint
from factory.model.view import ModelView
from factory.model.zoo import read_card
from factory.recipe import Recipe
from factory.recipe.schema import Node
from factory.registry import lookup
from factory.run import progress
from factory.run.collect import ASKS, Plan, collect
from factory.run.evaluate import Bench
from factory.run.rundir import RunDir, Stage
from factory.run.samples import SPLITS, check_share, fault, thin
from factory.steer import States

Rows = list[dict[str, Any]]


def make(node: Node) -> Any:
    """The plugin that a recipe node describes."""
    return lookup(node.kind, node.type)(node.params)


def steered_layer(recipe: Recipe, view: ModelView) -> int:
    """The recipe's layer, else the zoo card's, else the middle block. Raises ``UserError`` for one the model lacks."""
    card = read_card(recipe.model.zoo) if recipe.model.zoo else None
    named = [recipe.collect.layer, recipe.model.layer, card.layer if card else None]
    layer = next((layer for layer in named if layer is not None), view.depth // 2)
    if layer >= view.depth:
        raise UserError(f"layer {layer} is out of range: {type(view.model).__name__} has decoder blocks 0 to {view.depth - 1}")
    return layer


class Study:
    """One model put to one benchmark, with its stages."""

    def __init__(self, recipe: Recipe, folder: RunDir, view: ModelView, limit: int | None) -> None:
        self.recipe, self.folder, self.view, self.limit = recipe, folder, view, limit
        self.benchmark = make(recipe.data)
        self.diagnostic: Diagnostic | None = make(recipe.diagnostic) if recipe.diagnostic else None
        self.layer = steered_layer(recipe, view)
        self.bench = Bench(view, self.benchmark, self.layer, recipe.evaluate.max_new_tokens)
        self.inputs = {
            "code": version("steering-factory"), "seed": recipe.seed, "model": fingerprint(view),
            "data": recipe.data.model_dump(mode="json"), "limit": limit,
        }  # fmt: skip

    def chunks(self, stage: Stage, split: str, rows: int, compute: Callable[[list[ConflictSample]], Any]) -> list[Any]:
        """All chunks of ``stage`` over a split, ``rows`` prompts at a time; those stored before are only read."""
        return progress.gather(stage, {key: lambda b=batch: compute(b) for key, batch in self._batches(split, rows)})

    def _batches(self, split: str, rows: int) -> Iterator[tuple[str, list[ConflictSample]]]:
        size = max(1, rows // len(self.benchmark.forms))
        samples = self.samples[split]
        for i in range(0, len(samples), size):
            yield f"{split}-{i:05d}", samples[i : i + size]

    @cached_property
    def checked(self) -> tuple[dict[str, list[ConflictSample]], Rows]:
        """Usable samples by split, and those that are not, with the reason. Raises ``UserError`` where they are too many."""
        stage = self.folder.stage("check", self.inputs)
        usable, skipped, writing = {}, [], self.view.writing
        given = {split: thin(self.benchmark.samples(split), self.limit) for split in SPLITS}
        look = lambda split: [{"sample": x.id, "reason": why, "split": split} for x in given[split] if (why := fault(x, writing))]
        found = stage.gather({split: lambda s=split: look(s) for split in SPLITS})
        for (split, samples), bad in zip(given.items(), found, strict=True):
            check_share(bad, len(samples), self.recipe.evaluate.max_skipped)
            names = {row["sample"] for row in bad}
            usable[split] = [s for s in samples if s.id not in names]
            skipped += bad
        if not stage.done:
            stage.finish({"usable": {split: len(s) for split, s in usable.items()}, "skipped": len(skipped)})
        return usable, skipped

    @property
    def samples(self) -> dict[str, list[ConflictSample]]:
        return self.checked[0]

    def _collect(self, samples: list[ConflictSample], asks: tuple[str, ...]) -> tuple[dict[str, Tensor], Rows]:
        """States and tidy diagnostic rows of all forms of some samples."""
        asked = [(s, form) for s in samples for form in self.benchmark.forms]
        keys = [f"{s.id}/{form}" for s, form in asked]
        plan = Plan(self.layer, self.recipe.collect.position, self.recipe.collect.instructions, asks)
        states, found = collect(self.view, [self.benchmark.prompt(s, f) for s, f in asked], plan, self.diagnostic, keys)
        named = {f"{key}/{a}": facts(s, form, a) for key, (s, form) in zip(keys, asked, strict=True) for a in asks}
        return states, [{**row, **named[row["sample"]]} for rows in found.values() for row in rows]

    def collect_stage(self, name: str) -> Stage:
        parts = {"collect": self.recipe.collect.model_dump(), "layer": self.layer}
        diagnostic = self.recipe.diagnostic and self.recipe.diagnostic.model_dump(mode="json")
        return self.folder.stage(name, {**self.inputs, **parts, "diagnostic": diagnostic})

    @cached_property
    def collected(self) -> dict[str, Tensor]:
        """h_[I,T], h_[I,T,Pv], h_[I,T,Pt] of the training prompts [n, d] and their visual MCR r_v [n] (NaN without a diagnostic)."""
        stage = self.collect_stage("collect")

        def compute(samples: list[ConflictSample]) -> dict[str, Tensor]:
            states, rows = self._collect(samples, ("base",))
            r_v = [row["value"] for row in rows if row["metric"] == "R_V"]
            return {**states, "r_v": torch.tensor(r_v or [float("nan")] * len(states["base"]))}

        chunks = self.chunks(stage, "train", self.recipe.collect.batch_size, compute)
        tensors = {name: torch.cat([c[name] for c in chunks]) for name in (*ASKS, "r_v")}
        if not stage.done:
            stage.finish({"prompts": len(tensors["base"])})
        return tensors

    def states(self, direction: str) -> States:
        """What a method is fitted on toward ``direction``."""
        t = self.collected
        other = "text" if direction == "vision" else "vision"
        return States(direction, t["base"], t[direction], t[other], t["r_v"], self.train_tasks, self.recipe.seed)

    @property
    def train_tasks(self) -> list[str]:
        return [s.task for s in self.samples["train"] for _ in self.benchmark.forms]

    def diagnosed(self) -> Rows:
        """Diagnostic rows of the test prompts under no, the vision and the text instruction (AMPS figures 5 and 6)."""
        if self.diagnostic is None:
            return []
        stage = self.collect_stage("diagnose")
        chunks = self.chunks(stage, "test", self.recipe.collect.batch_size, lambda samples: self._collect(samples, ASKS)[1])
        if not stage.done:
            stage.finish({"rows": sum(map(len, chunks))})
        return [{**row, "split": "test"} for chunk in chunks for row in chunk]

    def investigated(self) -> dict[str, Rows]:
        """Rows of each of the recipe's further diagnostics, by label."""
        return {node.label: self._investigate(node) for node in self.recipe.diagnostics}

    def _investigate(self, node: Node) -> Rows:
        diagnostic, batch = make(node), self.recipe.collect.batch_size
        stage = self.folder.stage(f"diagnose-{node.label}", {**self.inputs, "diagnostic": node.model_dump(mode="json"), "batch": batch, "layer": self.layer})
        found = {split: self.chunks(stage, split, batch, lambda samples: diagnostic.on_samples(self.bench, samples)) for split in diagnostic.splits}
        rows = [{**row, "split": split} for split, chunks in found.items() for chunk in chunks for row in chunk]
        if not stage.done:
            stage.finish({"rows": len(rows)})
        return rows
