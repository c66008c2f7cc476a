"""The comparison of steering methods: fit on train, choose on dev, score on test."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from factory import files, progress
from factory.bench import asked_forms
from factory.benchmark import Rows
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.faults import concerning
from factory.registry import Params
from factory.run import inputs
from factory.run.labels import CURVE, changes_nothing, labels
from factory.run.methods.cells import Fitted, Strengths, always, ask, cells, contrast, looks, placed, sweep, trunk_of
from factory.run.methods.choose import Choice, choose, oracle
from factory.run.methods.halving import Candidates, asked_of_all, halve
from factory.run.methods.share import CHOSEN, OTHERS, Row, gather_share, swept_samples
from factory.run.methods.study import Study
from factory.run.methods.training import train_methods
from factory.run.questions.arms import Arm
from factory.run.rundir import Stage
from factory.steer import LogitsMethod, PromptMethod, Steerer, Trials, artefact
from factory.steer.base import Direction, Tensors, sound
from factory.steer.collect import measured_in
from factory.stopwatch import part

UNREPORTED = "(unsteered)"  # measured, but not reported, where the recipe has no method that changes nothing
Methods = Mapping[str, PromptMethod | LogitsMethod | Steerer]


def unsteered(methods: Methods) -> str:
    """The label of the method that changes nothing, as a recipe has it."""
    return next((label for label, m in methods.items() if changes_nothing(type(m))), UNREPORTED)


def prompters(methods: Methods) -> dict[str, PromptMethod]:
    """The prompt methods, among them one that leaves the prompt alone: what has strengths is measured against it."""
    given = {label: m for label, m in methods.items() if isinstance(m, PromptMethod)}
    base = unsteered(methods)
    return given if base in given or len(given) == len(methods) else {**given, base: PromptMethod(Params())}


class Comparison:
    """All methods of a recipe, in all its directions, on one study."""

    def __init__(self, study: Study) -> None:
        self.study, self.recipe = study, study.recipe
        self.labels = labels(self.recipe)
        self.methods = {node.label: node.make() for node in self.recipe.steering}
        self.directions, self.strengths = self.recipe.evaluate.directions, self.recipe.evaluate.strengths
        self.kept: list[Fitted] = []
        self.choices: list[Choice] = []
        self.scored: str = ""

    @property
    def steerers(self) -> dict[str, Steerer]:
        return {label: m for label, m in self.methods.items() if isinstance(m, Steerer)}

    @property
    def decoders(self) -> dict[str, LogitsMethod]:
        return {label: m for label, m in self.methods.items() if isinstance(m, LogitsMethod)}

    @property
    def prompters(self) -> dict[str, PromptMethod]:
        """The prompt methods, among them one that leaves the prompt alone: what has strengths is measured against
        it.
        """
        return prompters(self.methods)

    @cached_property
    def unsteered(self) -> str:
        """The label of the method that changes nothing, as the recipe has it."""
        return unsteered(self.methods)

    @cached_property
    def fit_stage(self) -> Stage:
        nodes = [inputs.with_code(n) for n in self.recipe.steering if n.label in self.steerers]
        found = [inputs.with_code(n) for n in self.recipe.diagnostics]
        collected = self.study.collect_stage("collect").digest
        return self.study.folder.stage(
            "fit", {"collect": collected, "methods": nodes, "directions": self.directions, "diagnostics": found}
        )

    @cached_property
    def trained(self) -> str | None:
        """The digest of what methods that train the model have learnt, once they have; None without any."""
        return train_methods(self.study, self.decoders)

    @property
    def unfitted(self) -> list[Fitted]:
        """Every method, direction and variant."""
        return [
            Fitted(label, direction, variant, steerer, {})
            for label, method in self.steerers.items()
            for direction in self.directions
            for variant, steerer in (method.variants() or {"": method}).items()
        ]

    @cached_property
    def fitted(self) -> list[Fitted]:
        """Every method, direction and variant, fitted on training states and, where it wants them, training trials."""
        unfitted, prompts = self.unfitted, len(self.study.collected["base"])
        states = progress.gather(self.fit_stage, {f.name: partial(self.fit, f) for f in unfitted})
        if not self.fit_stage.done:
            self.fit_stage.finish({"fitted": len(states), "prompts": prompts})
        return [replace(f, state=state) for f, state in zip(unfitted, states, strict=True)]

    def fit(self, f: Fitted) -> Tensors:
        """The state of a method, fitted on the training states toward its direction."""
        states = self.study.states(f.direction)
        with concerning(f.told), part("fit", f.label):
            return sound(f.steerer.fit(states), f"{f.told}: fit")

    def _calibrate(self, f: Fitted, chunks: Sequence[Tensors]) -> Tensors:
        trials = self._trials(f, chunks)
        with concerning(f.told), part("calibration", f.label):
            return sound(f.steerer.calibrate(f.state, trials), f"{f.told}: calibrate")

    @cached_property
    def ready(self) -> list[Fitted]:
        """The fitted methods, those with a controller calibrated on what their strengths do to the training prompts."""
        want = [f for f in self.fitted if f.steerer.trial_strengths]
        if not want:
            return self.fitted
        share = self.recipe.evaluate.trials
        stage = self._stage("trials", {"fit": self.fit_stage.digest} | ({"share": share} if share < 1 else {}))
        rows = self.recipe.evaluate.batch_size
        chunks = self.study.chunks_of(stage, "train", self.tried, rows, lambda samples: self._try(samples, want))
        calibrated = stage.gather({f"{f.name}-calibrated": partial(self._calibrate, f, chunks) for f in want})
        states = {f.name: state for f, state in zip(want, calibrated, strict=True)}
        if not stage.done:
            stage.finish({"calibrated": sorted(states)})
        return [replace(f, state=states.get(f.name, f.state)) for f in self.fitted]

    @property
    def tried(self) -> list[ConflictSample]:
        """The training samples on which controllers try their strengths."""
        return swept_samples(self.study.samples["train"], self.recipe.evaluate.trials)

    def _try(self, samples: list[ConflictSample], want: Sequence[Fitted]) -> Tensors:
        """Verdicts (1 follows, 2 error, 0 neither) [n, S] and looks [n, S, F] of every method, by name."""
        bench, out = self.study.bench, {}
        asked = asked_forms(bench, samples)
        trunk = trunk_of(bench, asked)
        for f in want:
            with part("trials", f.label):
                strengths, scores = f.steerer.trial_strengths, {f.direction: 1, "error": 2}
                rows = cells(bench, asked, trunk, f, strengths)
                columns = [[v for row in rows if row["strength"] == s for v in row["verdicts"]] for s in strengths]
                verdicts = torch.tensor([[scores.get(v, 0) for v in column] for column in columns])
                out[f"{f.name}.verdicts"] = verdicts.T.contiguous()
                out[f"{f.name}.looks"] = looks(bench, trunk, f)
        return out

    def _trials(self, f: Fitted, chunks: Sequence[Tensors]) -> Trials:
        verdicts, seen = (torch.cat([c[f"{f.name}.{what}"] for c in chunks]) for what in ("verdicts", "looks"))
        forms = len(self.study.benchmark.forms)
        place = {s.id: i for i, s in enumerate(self.study.samples["train"])}
        rows = torch.tensor([place[s.id] * forms + form for s in self.tried for form in range(forms)])
        collected, groups = self.study.collected, torch.arange(len(verdicts)) // forms
        measured = {name: values[rows] for name, values in measured_in(collected).items()}
        return Trials(verdicts == 1, verdicts == 2, seen, collected["base"][rows], measured, groups, self.recipe.seed)

    def _stage(self, name: str, parts: dict[str, Any]) -> Stage:
        e = self.recipe.evaluate
        how = {
            "strengths": e.strengths,
            "max_new_tokens": e.max_new_tokens,
            "batch_size": e.batch_size,
            "directions": e.directions,
            "scorer": self.study.benchmark.scorer,
        }
        ends = self.study.view.end_ids
        about = {**self.study.inputs, "scoring": self.study.scoring, "layer": self.study.layer, "ends": ends}
        return self.study.folder.stage(name, {**about, **how, **parts})

    def examples(self, sample: ConflictSample, form: str, direction: str, shots: int) -> list[Prompt]:
        """``shots`` answered training prompts of the sample's task; which ones is decided by its id."""
        pool = [s for s in self.study.samples["train"] if s.task == sample.task]
        first = int(hashlib.sha256(sample.id.encode()).hexdigest(), 16) % max(1, len(pool))
        chosen = [pool[(first + i) % len(pool)] for i in range(min(shots, len(pool)))]
        return [self.study.benchmark.example(s, form, direction) for s in chosen]

    def _scoring(self, split: str, parts: dict[str, Any]) -> Stage:
        nodes = [inputs.with_code(n) for n in self.recipe.steering]
        made_from = {"methods": nodes, "unsteered": self.unsteered, "fit": self.fit_stage.digest}
        made_from |= {"trained": self.trained} if self.trained else {}
        return self._stage(split, {**made_from, **parts})

    def _answers(
        self, samples: list[ConflictSample], fitted: Sequence[Fitted], at: Strengths, asked: Mapping[str, PromptMethod]
    ) -> Rows:
        """Predictions of the ``asked`` prompt methods, and of the decoding-time methods and the ``fitted`` ones at
        their strengths."""
        bench = self.study.bench
        rows: Rows = []
        for label, method in asked.items():
            with part("ask", label):
                rows += ask(bench, samples, label, method, self.directions, self.examples)
        for label, decoder in self.decoders.items():
            with part("ask", label):
                rows += contrast(bench, samples, label, decoder, self.directions, at)
        return rows + sweep(bench, samples, fitted, at)

    def _dev(self, ready: Sequence[Fitted]) -> tuple[Rows, list[Choice]]:
        """Predictions of all methods at every strength, or of those left by halving, and the choices made from them."""
        by_halving = self.recipe.evaluate.choose == "halving"
        stage = self._scoring("dev", {"choose": "halving"} if by_halving else {})
        rows, samples = self.recipe.evaluate.batch_size, self.study.samples["dev"]
        asked = {self.unsteered: self.prompters[self.unsteered]} if by_halving and self.prompters else self.prompters

        def ask(left: int, some: list[ConflictSample], at: Strengths) -> Rows:
            chunks = self.study.chunks_of(
                stage, f"round{left}", some, rows, lambda s: self._answers(s, ready, at, asked)
            )
            return [{**row, "split": "dev"} for chunk in chunks for row in chunk]

        if by_halving:
            found = halve(self._arms(ready), samples, ask, self.recipe.evaluate.error_budget, self.unsteered)
            dev = asked_of_all(found, len(samples))
        else:
            every = always(self.strengths)
            chunks = self.study.chunks(stage, "dev", rows, lambda s: self._answers(s, ready, every, asked))
            dev = [{**row, "split": "dev"} for chunk in chunks for row in chunk]
        choices = choose(dev, self.recipe.evaluate.error_budget, self.unsteered)
        if not stage.done:
            stage.finish({"choices": [asdict(c) for c in choices]})
        return dev, choices

    def _arms(self, ready: Sequence[Fitted]) -> Candidates:
        """What dev chooses among."""
        arms: dict[tuple[str, Direction], list[tuple[str, float]]] = defaultdict(list)
        for f in ready:
            arms[f.label, f.direction] += [(f.variant, s) for s in self.strengths]
        for label, direction in product(self.decoders, self.directions):
            arms[label, direction] += [("", s) for s in self.strengths]
        return arms

    def _test(self, kept: Sequence[Fitted], choices: Sequence[Choice]) -> tuple[Rows, Stage]:
        """Predictions at the chosen strengths; of the share that curves are drawn from also at all others, and then
        once more as a split of its own."""
        stage = self._scoring("test", {"choices": [asdict(c) for c in choices]})
        samples, share = self.study.samples["test"], self.recipe.evaluate.curve_share
        at = {(c.method, c.direction): c.strength for c in choices}
        order = {label: i for i, label in enumerate((*self.prompters, *self.decoders, *self.steerers))}

        def part_of(row: Row) -> str:
            return CHOSEN if row["strength"] in (None, at.get((row["method"], row["direction"]))) else OTHERS

        def cell_of(row: Row) -> tuple[int, ...]:
            swept = row["strength"] is not None
            rank = self.strengths.index(row["strength"]) if swept else 0
            return order[row["method"]], self.directions.index(row["direction"]), rank

        def answers(some: list[ConflictSample], parts: Collection[str]) -> Rows:
            def strengths(label: str, direction: Direction, _: str) -> list[float]:
                return [s for s in self.strengths if (CHOSEN if s == at[label, direction] else OTHERS) in parts]

            return self._answers(some, kept, strengths, self.prompters if CHOSEN in parts else {})

        size = self.study.size_of(self.recipe.evaluate.batch_size)
        found = gather_share(stage, samples, size, share, answers, part_of, cell_of)
        told = {"predictions": len(found)}
        if not stage.done or stage.summary != told:
            stage.finish(told)
        if share == 1:
            return [{**row, "split": "test"} for row in found], stage
        swept = {s.id for s in swept_samples(samples, share)}
        test = [{**row, "split": "test"} for row in found if part_of(row) == CHOSEN]
        return test + [{**row, "split": CURVE} for row in found if row["sample"] in swept], stage

    def run(self) -> tuple[Rows, list[Choice]]:
        """All predictions worth reporting (of chosen variants and the oracle, by split) and the choices made on dev.

        Afterwards ``kept`` are the fitted methods in their chosen variants, ``choices`` the choices, ``scored`` the
        test stage's digest.
        """
        ready = self.ready
        dev, choices = self._dev(ready)
        variants = {(c.method, c.direction): c for c in choices}
        kept = [f for f in ready if variants[f.label, f.direction].variant == f.variant]
        test, stage = self._test(kept, choices)
        self.kept, self.choices, self.scored = kept, choices, stage.digest
        if self.study.folder.world.first:
            self._save(kept, variants)
        swept = CURVE if self.recipe.evaluate.curve_share < 1 else "test"  # an oracle needs every strength
        whole = [dev] if self.recipe.evaluate.choose == "grid" else []
        upper = [
            row for rows in (*whole, [r for r in test if r["split"] == swept]) for row in self._oracle(rows, choices)
        ]
        return _finished(dev + test + upper, choices), choices

    def _oracle(self, rows: Rows, choices: Sequence[Choice]) -> Rows:
        """The upper bound of the reference's chosen variant on the samples of one split."""
        if (reference := self.labels.reference) is None:
            return []
        return oracle(of_chosen_variants(rows, choices), reference, self.unsteered)

    def arms(self) -> list[Arm]:
        """The model as it is, then every method at the strength chosen on dev. Methods that show worked examples are
        left out: those are examples of this benchmark."""
        prompted = [
            (label, m)
            for label, m in self.methods.items()
            if isinstance(m, PromptMethod) and label != self.unsteered and not m.shots
        ]
        asked = [Arm(label, d, rewrite=m) for label, m in prompted for d in self.directions]
        at = {(c.method, c.direction): c.strength for c in self.choices}
        steered = [
            Arm(f.label, f.direction, s, f.variant, placed(f, self.study.layer, s))
            for f in self.kept
            for s in [at[f.label, f.direction]]
        ]
        contrasted = [
            Arm(label, d, at[label, d], contrast=m) for label, m in self.decoders.items() for d in self.directions
        ]
        return [Arm(self.labels.unsteered), *asked, *steered, *contrasted]

    def _save(self, kept: Sequence[Fitted], choices: dict[tuple[str, str], Choice]) -> None:
        """One artefact per method and direction, at its chosen strength."""
        for f in kept:
            steering = placed(f, self.study.layer, choices[f.label, f.direction].strength)
            folder: Path = self.study.folder.path / "artefacts" / files.file_name(f"{f.label}-{f.direction}")
            artefact.save(
                folder,
                steering,
                self.study.view,
                {"direction": f.direction, "variant": f.variant, "run": self.recipe.name},
            )


def of_chosen_variants(rows: Rows, choices: Sequence[Choice]) -> Rows:
    """The rows without a strength, and those of the variants that were chosen."""
    variant = {(c.method, c.direction): c.variant for c in choices}
    return [r for r in rows if r["strength"] is None or variant[r["method"], r["direction"]] == r["variant"]]


def _finished(found: Rows, choices: Sequence[Choice]) -> Rows:
    """All predictions worth reporting, of chosen variants, with ``chosen`` and the hash of all prompts of their
    cell."""
    chosen_of = {(c.method, c.direction): c for c in choices}
    rows = [row for row in of_chosen_variants(found, choices) if row["method"] != UNREPORTED]
    prompts: dict[tuple, list[str]] = {}
    for r in rows:
        prompts.setdefault((r["split"], r["method"], r["direction"]), []).extend(r["prompts"])
    hashes = {key: hashlib.sha256(" ".join(sorted(set(p))).encode()).hexdigest()[:16] for key, p in prompts.items()}

    def chosen(r: dict[str, Any]) -> bool:
        choice = chosen_of.get((r["method"], r["direction"]))
        return choice is None or choice.strength == r["strength"]

    return [{**r, "chosen": chosen(r), "prompt_hash": hashes[r["split"], r["method"], r["direction"]]} for r in rows]
