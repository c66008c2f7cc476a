"""Tuners side by side (``compare:`` of a recipe): every tuner learns every task at each of its learning rates, the rate
is chosen on the task's ``choose`` benchmark, and the chosen model is scored on the others and looked at by the recipe's
diagnostics.

Each tuning, scoring and diagnosis is a stage of one run folder, and the trained parts lie in ``tuned/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from factory import files, progress, report
from factory.benchmark import Rows
from factory.blame import blaming, wrong
from factory.data.prompt import Prompt
from factory.diagnose import Diagnostic
from factory.diagnose.summary import Summary
from factory.model.load import load
from factory.model.source import Wanted
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.recipe.schema import ContenderSpec, Node, TaskSpec
from factory.run.environment import about_run
from factory.run.inputs import answering, of_items, running_digest, with_code
from factory.run.labels import labels
from factory.run.questions.arms import Arm
from factory.run.questions.harness import HarnessSuite
from factory.run.questions.suite import AnySuite, Suite, questions_of
from factory.run.rundir import RunDir, Stage
from factory.run.samples import thin
from factory.run.tuners.checked import check, refuse_unknown_tasks
from factory.run.tuners.contest_settings import in_setting, read_predictions, settings_summary
from factory.run.tuners.contest_summary import in_terminal, summaries_of
from factory.run.tuners.going_on import refuse_other
from factory.run.tuners.opening import shared_source
from factory.run.tuners.tuning import COST, TUNED, inputs_of, tune_on
from factory.terminal import Console


@dataclass(frozen=True)
class Tuned:
    """One tuner on one task at one learning rate: where its trained part lies, and what the task's ``choose`` benchmark
    made of it.
    """

    task: TaskSpec
    contender: ContenderSpec
    rate: float
    folder: Path
    stage: Stage
    dev: dict[str, Any] | None = None

    @property
    def method(self) -> str:
        return self.contender.tuner.label

    @property
    def dev_value(self) -> float | None:
        return self.dev["metrics"][self.dev["main"]] if self.dev else None

    def record(self, chosen: bool) -> dict[str, Any]:
        """What results.json keeps of it."""
        summary, default = self.stage.summary, self.contender.tuner.plugin.learning_rate
        row = self.dev
        dev = row and {
            "benchmark": row["label"],
            "metric": row["main"],
            "value": self.dev_value,
            "ci": row["ci"].get(row["main"]),
            "n": row["n"],
        }
        return {
            "task": self.task.name,
            "method": self.method,
            "learning_rate": self.rate,
            "default": self.rate == default,
            "chosen": chosen,
            "dev": dev,
            "steps": summary["steps"],
            "loss": summary["loss"],
            "parameters": summary["parameters"],
        }


def best(tried: Sequence[Tuned]) -> Tuned:
    """The one that scores best on dev; of equals the tuner's default learning rate, else the lowest."""
    default = tried[0].contender.tuner.plugin.learning_rate
    return max(tried, key=lambda t: (t.dev_value or 0.0, t.rate == default, -t.rate))


def compare_tuners(
    recipe: Recipe,
    folder: RunDir,
    limit: int | None,
    model: Wanted,
    asked: Sequence[AnySuite],
    notes: Sequence[str],
) -> None:
    """Tune, choose, score and diagnose; write results.json, the report and the comparison with its tests."""
    contest = Contest(recipe, folder, limit, model, asked)
    contest.run()
    if folder.world.first:
        contest.conclude(notes)


def check_contest(recipe: Recipe, suites: Mapping[str, AnySuite], ranks: int | None = None) -> None:
    """What can be checked of a comparison of tuners before data and model are read; ``suites`` by label, those of its
    benchmarks that could be made. Raises ``UserError``.
    """
    spec = given(recipe.compare)
    with blaming(spec):
        for task in spec.tasks:
            for contender in spec.tuners:
                check(spec.tune(contender, task, 1.0), recipe.model, "compare", ranks, recipe.launch)
    for task in spec.tasks:
        suite = suites.get(task.choose.label) if task.choose else None
        if isinstance(suite, Suite) and (why := suite.benchmark.unscorable()):
            raise wrong(task, "choose", f"'{task.name}' cannot choose a learning rate on '{suite.node.label}': {why}")
    for node in recipe.diagnostics:
        if node.plugin.on_samples is not Diagnostic.on_samples:
            raise wrong(
                node,
                "type",
                f"'{node.label}' asks prompts of its own about conflicts, and tuned models are looked at on the prompts"
                " of their benchmarks; use lmar or mcr",
            )
        for task in spec.tasks:
            if isinstance(suites.get(task.score[0].label), HarnessSuite):
                raise wrong(
                    task,
                    "score",
                    f"'{task.name}' is scored by a harness first, whose prompts '{node.label}' cannot see; put a"
                    " benchmark with prompts in front",
                )


class Contest:
    """The comparison as it goes; ``tried`` are all tunings, ``rows`` those of results.json."""

    def __init__(
        self, recipe: Recipe, folder: RunDir, limit: int | None, model: Wanted, asked: Sequence[AnySuite]
    ) -> None:
        self.recipe, self.folder, self.limit, self.spec = recipe, folder, limit, given(recipe.compare)
        self.wanted = model
        self.suites = {suite.node.label: suite for suite in asked}
        self.diagnostics = {node.label: node.make() for node in recipe.diagnostics}
        self.sources = {
            task.name: shared_source(self._single(self.spec.tuners[0], task, 1.0), folder, model, task.data)
            for task in self.spec.tasks
        }
        self._refuse_other()
        self.base = load(model)
        self.unsteered = labels(recipe).unsteered
        self.model = running_digest(self.base)
        self.tried: list[Tuned] = []
        self.chosen: list[Tuned] = []
        self.rows: Rows = []
        self.skipped: Rows = []
        self.costs: dict[str, Any] = {}
        self.settings: dict[tuple[str, str], Sequence[str]] = {}
        self.found: dict[str, dict[str, Rows]] = {label: {} for label in self.diagnostics}

    def _refuse_other(self) -> None:
        """Before a model is loaded: tasks that no sample has, and trainings that are there and learnt with other values
        than the recipe now has.
        """
        for task in self.spec.tasks:
            for contender in self.spec.tuners:
                refuse_unknown_tasks(self.spec.tune(contender, task, 1.0), self.sources[task.name])
                for rate in self.spec.rates(contender, task):
                    inputs = inputs_of(self._single(contender, task, rate), self.sources[task.name], self.limit)
                    refuse_other(self.folder.path / f"tune-{_name(task, contender, rate)}", inputs)

    def _single(self, contender: ContenderSpec, task: TaskSpec, rate: float) -> Recipe:
        """One tuning as a recipe of its own."""
        return self.recipe.model_copy(update={"compare": None, "tune": self.spec.tune(contender, task, rate)})

    def run(self) -> None:
        """Everything that runs a model."""
        for task in self.spec.tasks:
            self._examine(task, Arm(self.unsteered), self.recipe, self.base)
            for contender in self.spec.tuners:
                tried = [self._tune(contender, task, rate) for rate in self.spec.rates(contender, task)]
                winner = best(tried)
                self.tried += tried
                self.chosen.append(winner)
                recipe, view = self._load(winner)
                self._examine(task, self._arm(winner, winner.method), recipe, view)
                self._set_otherwise(task, winner, recipe, view)

    def _set_otherwise(self, task: TaskSpec, tuned: Tuned, recipe: Recipe, view: ModelView) -> None:
        """Score a tuner's further settings, which its task's benchmarks alone are put to."""
        tuner = view.parts[-1]
        for setting in tuner.settings():
            arm = replace(self._arm(tuned, in_setting(tuned.method, setting)), setting=setting)
            with tuner.set_to(setting):
                for node in task.score:
                    self.rows += [{**row, "learnt": task.name} for row in self._score(node, arm, recipe, view)]
        if tuner.settings():
            self.settings[task.name, tuned.method] = tuner.settings()

    def _tune(self, contender: ContenderSpec, task: TaskSpec, rate: float) -> Tuned:
        single = self._single(contender, task, rate)
        name = _name(task, contender, rate)
        out = self.folder.path / TUNED / name
        stage = tune_on(
            single,
            self.folder,
            f"tune-{name}",
            self.sources[task.name],
            self.model,
            lambda: load(self.wanted),
            out,
            self.limit,
        )
        tuned = Tuned(task, contender, rate, out, stage)
        if task.choose is None:
            return tuned
        [dev] = [
            row
            for row in self._score(task.choose, self._arm(tuned, f"{tuned.method}-{rate:g}"), *self._load(tuned))
            if row["task"] == "all"
        ]
        return Tuned(task, contender, rate, out, stage, dev)

    def _arm(self, tuned: Tuned, name: str) -> Arm:
        return Arm(name, trained=tuned.stage.summary["parameters"]["tuner"])

    def _load(self, tuned: Tuned) -> tuple[Recipe, ModelView]:
        """The tuned model, and the recipe that names it."""
        recipe = self.recipe.model_copy(
            update={
                "model": self.recipe.model.model_copy(update={"tuned": (*self.recipe.model.tuned, str(tuned.folder))})
            }
        )
        return recipe, load(recipe.model)

    def _score(self, node: Node, arm: Arm, recipe: Recipe, view: ModelView) -> Rows:
        suite = self.suites[node.label]
        if isinstance(suite, HarnessSuite):  # it may load the model itself
            suite = HarnessSuite(node, recipe, self.limit)
        rows, skipped, price = suite.run(self.folder, view, arm)
        self.skipped += [s for s in skipped if s not in self.skipped]
        self.costs |= {f"{label}/{arm.name}": price for label in dict.fromkeys(row["label"] for row in rows)}
        return rows

    def _examine(self, task: TaskSpec, arm: Arm, recipe: Recipe, view: ModelView) -> None:
        for node in task.score:
            self.rows += [{**row, "learnt": task.name} for row in self._score(node, arm, recipe, view)]
        for node in self.recipe.diagnostics:
            self.found[node.label][self._title(task, arm.method)] = self._diagnose(node, task, arm, view)

    def _title(self, task: TaskSpec, method: str) -> str:
        return method if len(self.spec.tasks) == 1 else f"{task.name}: {method}"

    def _diagnose(self, node: Node, task: TaskSpec, arm: Arm, view: ModelView) -> Rows:
        suite, size, diagnostic = (
            self.suites[task.score[0].label],
            self.recipe.evaluate.batch_size,
            self.diagnostics[node.label],
        )
        assert isinstance(suite, Suite), "`_check` refuses a harness in front of a diagnostic"
        items = thin([item for item in suite.items if not item.after], self.spec.diagnose_on)
        inputs = {
            **answering(view),
            "diagnostic": with_code(node),
            "benchmark": with_code(suite.node),
            "items": of_items(items),
            "batch": size,
        }
        stage = self.folder.stage(files.file_name("diagnose", node.label, task.name, arm.name), inputs)

        def compute(batch: Sequence[Any]) -> Rows:
            prompts = {item.id: prompt for item in batch if (prompt := _readable(item)) is not None}
            return diagnostic.measure(view, view.encode(list(prompts.values())), list(prompts)) if prompts else []

        work = {f"{i:06d}": partial(compute, items[i : i + size]) for i in range(0, len(items), size)}
        about = {item.id: {"split": suite.benchmark.split, "task": (*item.tasks, "")[0]} for item in items}
        rows = [{**row, **about[row["sample"]]} for chunk in progress.gather(stage, work) for row in chunk]
        if not stage.done:
            stage.finish({"rows": len(rows)})
        return rows

    def conclude(self, notes: Sequence[str]) -> None:
        """Write what was found and print it."""
        folder, recipe = self.folder.path, self.recipe
        records = [tuned.record(tuned in self.chosen) for tuned in self.tried]
        prices = {f"{t.task.name}/{t.method}": files.read_json(t.stage.path / COST) for t in self.chosen}
        files.write_json(folder / "costs.json", {**self.costs, "training": prices})
        sizes = {self._title(t.task, t.method): t.stage.summary["parameters"]["tuner"] for t in self.chosen}
        seen = self._diagnosed(sizes) | self._parts_taken_away()
        results = {
            "schema": 1,
            "run": {**about_run(recipe, self.base, notes), "skipped": self.skipped},
            "rows": self.rows,
            "tuning": records,
            "diagnostics": {label: summary.record() for label, summary in seen.items()},
        }
        files.write_json(folder / "results.json", results)
        own = summaries_of(self.spec, records, self.rows, prices, self.unsteered)
        first = self.suites[self.spec.tasks[0].score[0].label].benchmark
        found = report.Finished(
            folder,
            results,
            first,
            recipe.report.plots,
            [*own, *seen.values()],
            asked=questions_of(list(self.suites.values())),
            limit=self.limit,
        )
        page = report.write(found, recipe.report.also)
        for summary in own:
            Console().print(in_terminal(summary))
        Console().print(f"results: {folder / 'results.json'}\nreport:  {page}", soft_wrap=True)

    def _parts_taken_away(self) -> dict[str, Summary]:
        """What each tuner's further settings change, against its plain one."""
        found = {}
        for (task, method), settings in self.settings.items():
            labels = [node.label for t in self.spec.tasks if t.name == task for node in t.score]
            records = lambda label, arm: read_predictions(self.folder.path, label, arm)
            label = method if len(self.spec.tasks) == 1 else f"{task}-{method}"
            found[f"{label}-settings"] = settings_summary(method, settings, labels, records).under(f"{label}-settings")
        return found

    def _diagnosed(self, sizes: dict[str, int]) -> dict[str, Summary]:
        """What each diagnostic says of the models side by side."""
        made = {label: diagnostic.beside(self.found[label], sizes) for label, diagnostic in self.diagnostics.items()}
        return {label: summary.under(label) for label, summary in made.items() if summary is not None}


def _name(task: TaskSpec, contender: ContenderSpec, rate: float) -> str:
    """Of one tuning, for its stage and the folder of its trained part."""
    return f"{task.name}-{contender.tuner.label}-{rate:g}"


def _readable(item: Any) -> Prompt | None:
    """An item's prompt; None where its picture cannot be read, which its score counts as skipped."""
    try:
        return item.prompt()
    except OSError:
        return None
