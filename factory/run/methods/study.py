"""What a run knows of its model and data: usable samples, training states, diagnosis. Each is a stage of the run
folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from factory import code, files, progress
from factory.bench import Bench, conflicts
from factory.benchmark import Rows
from factory.blame import wrong
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, Known, about
from factory.errors import UserError
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import Node, given
from factory.recipe.sections.steering import ANSWER
from factory.run import inputs
from factory.run.rundir import RunDir, Stage
from factory.run.samples import Checked, usable_samples
from factory.steer import States, Steerer
from factory.steer.base import Direction
from factory.steer.collect import BASE, Plan, asks_of, collect, joined, states_toward
from factory.zoo.cards import Card


def steered_layer(recipe: Recipe, depth: int, card: Card | None) -> int:
    """The recipe's layer, else the zoo card's, else the middle one of ``depth`` blocks. Raises ``UserError`` for one
    the model lacks.
    """
    for section, layer in ((recipe.collect, recipe.collect.layer), (recipe.model, recipe.model.layer)):
        if layer is not None and layer >= depth:
            raise wrong(
                section, "layer", f"layer {layer} is out of range: the model has decoder blocks 0 to {depth - 1}"
            )
        if layer is not None:
            return layer
    return card.layer if card and card.layer is not None else depth // 2


class Study:
    """One model put to one benchmark, with its stages; ``checked`` are its samples where they were looked at before the
    weights were read.
    """

    def __init__(
        self, recipe: Recipe, folder: RunDir, view: ModelView, limit: int | None, checked: Checked | None = None
    ) -> None:
        self.recipe, self.folder, self.view, self.limit = recipe, folder, view, limit
        data = given(recipe.data)
        self.benchmark = conflicts(data)
        self.diagnostic = self.diagnostic_of(recipe.diagnostic) if recipe.diagnostic else None
        self.card = view.card
        self.layer = steered_layer(recipe, view.depth, self.card)
        steerers = [m for m in (node.make() for node in recipe.steering) if isinstance(m, Steerer)]
        self.tails = any(m.reads_tails for m in steerers)
        self.reads_agreeing = [m.name for m in steerers if m.reads_agreeing]
        self.samples, self.skipped = checked or usable_samples(recipe, self.benchmark, folder, limit, view)
        self._agreeing: dict[str, Tensor] = {}  # of the training and the dev split, where a method reads them
        self._elsewhere: dict[str, dict[str, Tensor]] = {}  # what was collected of other splits than the training one
        self.bench = Bench(view, self.benchmark, self.layer, recipe.evaluate.max_new_tokens)
        self.inputs = {
            "code": version("steering-factory"),
            "seed": recipe.seed,
            **inputs.running(view),
            "data": inputs.asking(data),
            "limit": limit,
            "samples": inputs.of_samples(s for split in self.samples.values() for s in split),
        }
        self.scoring = inputs.scoring(data, self.benchmark.scorer)

    def diagnostic_of(self, node: Node) -> Diagnostic:
        """The diagnostic of a node, on the benchmark's sources."""
        made: Diagnostic = node.make()
        return made.between(self.benchmark.sources)

    def chunks(self, stage: Stage, split: str, rows: int, compute: Callable[[list[ConflictSample]], Any]) -> list[Any]:
        """All chunks of ``stage`` over a split, ``rows`` prompts at a time; those stored before are only read."""
        return self.chunks_of(stage, split, self.samples[split], rows, compute)

    def chunks_of(
        self,
        stage: Stage,
        name: str,
        samples: Sequence[ConflictSample],
        rows: int,
        compute: Callable[[list[ConflictSample]], Any],
    ) -> list[Any]:
        """As ``chunks``, over any samples; the chunks' names begin with ``name``."""
        size = self.size_of(rows)
        batches = {f"{name}-{i * size:05d}": batch for i, batch in enumerate(self.batches(samples, rows))}
        return progress.gather(stage, {key: partial(compute, batch) for key, batch in batches.items()})

    def _at_once(self, split: str) -> int:
        """So many prompts that a split is one batch."""
        return max(1, len(self.samples[split]) * len(self.benchmark.forms))

    def size_of(self, rows: int) -> int:
        """How many samples make a batch of so many prompts, at least one."""
        return max(1, rows // len(self.benchmark.forms))

    def batches(self, samples: Sequence[ConflictSample], rows: int) -> list[list[ConflictSample]]:
        """The samples, so many at a time that they make ``rows`` prompts."""
        size = self.size_of(rows)
        return [list(samples[i : i + size]) for i in range(0, len(samples), size)]

    def _collect(
        self, samples: list[ConflictSample], asks: tuple[str, ...], tails: bool = False
    ) -> tuple[dict[str, Tensor], Rows]:
        """States and tidy diagnostic rows of all forms of some samples."""
        asked = [(s, form) for s in samples for form in self.benchmark.forms]
        keys = [f"{s.id}/{form}" for s, form in asked]
        how = self.recipe.collect
        plan = Plan(self.layer, how.position, how.instructions, asks, tails)
        prompts = [self.benchmark.prompt(s, f) for s, f in asked]
        states, found = collect(
            self.view, prompts, plan, self.diagnostic, keys, self._completions(asked), self._pairs(asked)
        )
        named = {f"{key}/{a}": about(s, form, a) for key, (s, form) in zip(keys, asked, strict=True) for a in asks}
        return states, [{**row, **named[row["sample"]]} for rows in found.values() for row in rows]

    def _completions(self, asked: Sequence[tuple[ConflictSample, str]]) -> dict[str, list[str]] | None:
        """How an answer toward each side begins, where the recipe contrasts completions."""
        if (completion := self.recipe.collect.completion) is None:
            return None
        answer = lambda s, form, side: self.benchmark.example(s, form, side).segments[-1].text
        return {
            side: [completion.replace(ANSWER, answer(s, f, side)) for s, f in asked]
            for side in self.benchmark.sources.names
        }

    def _pairs(self, asked: Sequence[tuple[ConflictSample, str]]) -> dict[str, list[Prompt]] | None:
        """The prompts toward each side, where the recipe takes the benchmark's own."""
        if self.recipe.collect.contrast != "pairs":
            return None
        return {side: [self.benchmark.paired(s, f, side) for s, f in asked] for side in self.benchmark.sources.names}

    def collect_stage(self, name: str) -> Stage:
        parts = {"collect": self.recipe.collect.model_dump(), "layer": self.layer}
        parts |= {"tails": self.tails} if name.startswith("collect") else {}
        diagnostic = self.recipe.diagnostic and inputs.with_code(self.recipe.diagnostic)
        if self.recipe.diagnostic:
            parts |= {
                "ends": self.view.end_ids,
                **self._defaults(self.recipe.diagnostic),
            }  # it may let the model answer
        return self.folder.stage(name, {**self.inputs, **parts, "diagnostic": diagnostic})

    def _defaults(self, node: Node) -> dict[str, Any]:
        """What the model's card says a diagnostic does where the recipe leaves it open, as a stage's inputs have it."""
        return {"defaults": self.view.defaults[node.type]} if node.type in self.view.defaults else {}

    @cached_property
    def collected(self) -> dict[str, Tensor]:
        """h_[I,T], h_[I,T,Pv], h_[I,T,Pt] of the training prompts [n, d], and what the diagnostic gives once a prompt
        [n] (see ``factory.steer.collect``).
        """
        found = self._collected("collect", "train")
        for split in ("train", "dev") if self.reads_agreeing else ():
            self._agreeing[split] = self._of_agreeing(split)
        return found

    def _collected(self, name: str, split: str) -> dict[str, Tensor]:
        stage = self.collect_stage(name)
        chunks = self.chunks(
            stage,
            split,
            self.recipe.collect.batch_size,
            lambda samples: self._collect(samples, (BASE,), self.tails)[0],
        )
        tensors = joined(chunks)
        if not stage.done:
            stage.finish({"prompts": len(tensors["base"])})
        return tensors

    def states_of(self, direction: Direction, split: str) -> States:
        """As ``states``, of any split's prompts, and without what the further diagnostics found."""
        if split != "train" and split not in self._elsewhere:
            self._elsewhere[split] = self._collected(f"collect-{split}", split)
        collected = self.collected if split == "train" else self._elsewhere[split]
        tasks = [s.task for s in self.samples[split] for _ in self.benchmark.forms]
        return states_toward(direction, collected, tasks, self.recipe.seed, sources=self.benchmark.sources)

    def states(self, direction: Direction) -> States:
        """What a method is fitted on toward ``direction``."""
        collected, sources = self.collected, self.benchmark.sources
        return states_toward(
            direction, collected, self.train_tasks, self.recipe.seed, self.found, sources, self._agreeing
        )

    def _of_agreeing(self, split: str) -> Tensor:
        """h_[I,T] [m, d] of a split's prompts in which both sources say the same. Raises ``UserError`` where there are
        none.
        """
        samples = self.agreeing_samples(split)
        if not samples:
            raise UserError(
                f"steering '{self.reads_agreeing[0]}' is fitted on prompts without a conflict too, and"
                f" '{self.benchmark.name}' has none on its {split} split; leave the method out"
            )
        stage, how = self.collect_stage(f"collect-agreeing-{split}"), self.recipe.collect
        plan = Plan(self.layer, how.position, how.instructions)

        def states(some: list[ConflictSample]) -> dict[str, Tensor]:
            prompts = self.agreeing_prompts(some)
            return {BASE: collect(self.view, prompts, plan, None, [p.digest for p in prompts])[0][BASE]}

        found = joined(self.chunks_of(stage, split, samples, how.batch_size, states))
        if not stage.done:
            stage.finish({"prompts": len(found[BASE])})
        return found[BASE]

    def agreeing_samples(self, split: str) -> list[ConflictSample]:
        """The split's samples without their conflict; none where the benchmark has no such control."""
        own = {s.id for s in self.samples[split]}
        asked = self.benchmark.agreeing
        return [s for s in asked.samples(split) if s.id in own] if asked else []

    def agreeing_prompts(self, samples: Sequence[ConflictSample]) -> list[Prompt]:
        """Each of ``agreeing_samples`` in each of its forms."""
        asked = self.benchmark.agreeing or self.benchmark
        return [asked.prompt(s, form) for s in samples for form in asked.forms]

    @property
    def found(self) -> Rows:
        """What the further diagnostics saw of the training split."""
        return [row for rows in self.investigated.values() for row in rows if row["split"] == "train"]

    @property
    def train_tasks(self) -> list[str]:
        return [s.task for s in self.samples["train"] for _ in self.benchmark.forms]

    def diagnosed(self) -> Rows:
        """Diagnostic rows of the test prompts under no instruction and one toward each source (AMPS figures 5, 6)."""
        if self.diagnostic is None:
            return []
        stage, asks = self.collect_stage("diagnose"), asks_of(self.benchmark.sources)
        chunks = self.chunks(
            stage, "test", self.recipe.collect.batch_size, lambda samples: self._collect(samples, asks)[1]
        )
        if not stage.done:
            stage.finish({"rows": sum(map(len, chunks))})
        return [{**row, "split": "test"} for chunk in chunks for row in chunk]

    @cached_property
    def investigated(self) -> dict[str, Rows]:
        """Rows of each of the recipe's further diagnostics, by label; each may learn from those before it."""
        found: dict[str, Rows] = {}
        for node in self.recipe.diagnostics:
            found[node.label] = self.investigate(node, self.taught(node, found), found)
        return found

    def taught(self, node: Node, earlier: Mapping[str, Rows]) -> Diagnostic:
        """A further diagnostic that has learnt from the training rows of those before it, and knows what the run does.
        Raises ``UserError`` where they are not what it needs."""
        diagnostic = self.diagnostic_of(node)
        diagnostic.acquaint(Known(self.samples, self.states_of, self.recipe.seed))
        diagnostic.learn([row for rows in earlier.values() for row in rows if row["split"] == "train"])
        return diagnostic

    def investigate(self, node: Node, diagnostic: Diagnostic, earlier: Mapping[str, Rows]) -> Rows:
        """Rows of a further diagnostic that comes after the ``earlier`` ones."""
        batch = self.recipe.collect.batch_size
        before = [inputs.with_code(n) for n in self.recipe.diagnostics[: len(earlier)]]
        scored = {"scoring": self.scoring} if code.asks(type(diagnostic), inputs.SCORING) else {}
        knows = type(diagnostic).acquaint is not Diagnostic.acquaint
        collected = {"collect": self.collect_stage("collect").digest} if knows else {}
        stage = self.folder.stage(
            files.file_name(f"diagnose-{node.label}"),
            {
                **self.inputs,
                **scored,
                **collected,
                **self._defaults(node),
                "ends": self.view.end_ids,
                "diagnostic": inputs.with_code(node),
                "batch": batch,
                "max_new_tokens": self.recipe.evaluate.max_new_tokens,
                "layer": self.layer,
                "after": before,
            },
        )
        rows_of = lambda split: self._at_once(split) if diagnostic.at_once else batch
        found = {
            split: self.chunks(stage, split, rows_of(split), lambda samples: diagnostic.on_samples(self.bench, samples))
            for split in diagnostic.splits
        }
        rows = [{**row, "split": split} for split, chunks in found.items() for chunk in chunks for row in chunk]
        if not stage.done:
            stage.finish({"rows": len(rows)})
        return rows


@contextmanager
def study_aside(
    recipe: Recipe, view: ModelView, limit: int | None = None, checked: Checked | None = None
) -> Iterator[Study]:
    """A study in a run folder that no one else has and that is gone when the block ends."""
    told = recipe.source_path or Path(f"{recipe.name}.yaml"), recipe.text, recipe.resolved()
    with (
        TemporaryDirectory(prefix="steering-factory-") as root,
        RunDir.open(Path(root), recipe.name, *told) as folder,
    ):
        yield Study(recipe, folder, view, limit, checked)
