"""Text abilities (HellaSwag, MMLU, IFEval, own tasks) through EleutherAI's lm-evaluation-harness on the live model."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from math import isclose
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from eval_suite.bridges.drawn import Drawn
from eval_suite.bridges.results import measured, record, share_interval
from eval_suite.bridges.task_files import made_of
from factory.benchmark import Harness
from factory.errors import UserError
from factory.extras import installed_by
from factory.recipe.paths import RecipePath
from factory.registry import Params, register
from factory.run.questions.harness import Job

MAIN = ("acc", "exact_match", "prompt_level_strict_acc")
BESIDE = ("acc_norm", "prompt_level_loose_acc", "inst_level_strict_acc", "inst_level_loose_acc")


class LmEvalParams(Params):
    """``tasks`` by lm-eval's names; ``include`` is a folder of own task files; ``limit`` questions of each task.

    ``few_shot`` worked examples, null the task's own number. ``drawn``: a part of each task's questions.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    include: RecipePath | None = None
    few_shot: int | None = Field(None, ge=0)
    limit: PositiveInt | None = None
    drawn: Drawn | None = None
    batch_size: PositiveInt = 16


@register("benchmark", "lm_eval")
class LmEval(Harness):
    """Text tasks of lm-eval: log-likelihood and generation with the model, steered or not, as it stands in memory."""

    Params = LmEvalParams
    scorer: ClassVar[str] = "lm-eval"

    def __init__(self, params: LmEvalParams) -> None:
        self.params = params
        try:
            self.version = version("lm-eval")
        except PackageNotFoundError as error:
            raise UserError(
                f"benchmark lm_eval needs lm-eval, the extra 'benchmarks': {installed_by('benchmarks')}"
            ) from error
        if params.include:
            params.include.directory("include")

    @property
    def protocol(self) -> str:
        return f"lm-eval/{self.version}"

    @property
    def part(self) -> str:
        """What ``drawn`` adds to the protocol of a task."""
        return f"/{self.params.drawn.protocol}" if self.params.drawn else ""

    def made_of(self) -> dict[str, str] | None:
        return made_of(self.params.include)

    def harness(self, job: Job) -> list[dict[str, Any]]:
        """One result per task: name, metrics, intervals, n, protocol, and per-question records. A group that lm-eval
        scores as a whole ("mmlu") is one result, its tasks and inner groups being parts of it.

        Raises ``UserError`` for a task that lm-eval does not know or whose data cannot be had.
        """
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from eval_suite.bridges.lm_model import LiveModel

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        p, seed = self.params, job.seed
        manager = TaskManager(
            include_path=str(Path(p.include).expanduser()) if p.include else None,
            include_defaults=p.include is None or not self._own(),
        )
        if unknown := [task for task in p.tasks if task not in manager.all_tasks]:
            raise UserError(
                f"benchmark lm_eval: no task {', '.join(unknown)}; own task files are found through include: FOLDER"
            )
        try:
            asked = self._drawn(manager, job.limit or p.limit)
            out = simple_evaluate(
                model=LiveModel(job.view, p.batch_size),
                tasks=list(p.tasks),
                task_manager=manager,
                num_fewshot=p.few_shot,
                limit=None if asked else job.limit or p.limit,
                samples=asked,
                log_samples=True,
                bootstrap_iters=1000,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise UserError(
                f"benchmark lm_eval: the data of a task cannot be had ({error}); download it first, or use own task"
                " files"
            ) from error
        return self._results(out)

    def _drawn(self, manager: Any, limit: int | None) -> dict[str, list[int]] | None:
        """The numbers of the questions of each task that ``drawn`` leaves; None where all are asked. Raises
        ``UserError`` for a task of which none is left.
        """
        if self.params.drawn is None:
            return None
        found = {}
        for name, task in manager.load(list(self.params.tasks))["tasks"].items():
            n = len(task.eval_docs)
            if not (asked := self.params.drawn.of(n, limit)):
                raise UserError(f"benchmark lm_eval: {name} has {n} questions, and drawn.skip leaves none")
            found[name] = asked
        return found

    def _own(self) -> bool:
        """Whether every task is one of the folder's, so that lm-eval's thousands of own files need not be read."""
        from lm_eval.tasks import TaskManager

        own = TaskManager(include_path=str(Path(self.params.include).expanduser()), include_defaults=False)
        return all(task in own.all_tasks for task in self.params.tasks)

    def _results(self, out: dict[str, Any]) -> list[dict[str, Any]]:
        inside = {
            name: _within(out, name) for name in out.get("group_subtasks", {}) if measured(out["results"][name])[0]
        }
        outer = [name for name in inside if not any(name in within for within in inside.values())]
        found = []
        for group in outer:
            parts = [self._result(out, name, group) for name in inside[group] if measured(out["results"][name])[0]]
            found += [self._result(out, group), *parts]
        alone = [task for task in out["samples"] if not any(task in inside[group] for group in outer)]
        return [*(self._result(out, task) for task in alone), *found]

    def _result(self, out: dict[str, Any], task: str, group: str | None = None) -> dict[str, Any]:
        """The result of a task or group; of one inside a ``group`` as its part."""
        metrics, ci = measured(out["results"][task])
        main = next((m for m in MAIN if m in metrics), next(iter(metrics)))
        tasks = [name for name in (task, *_within(out, task)) if name in out["samples"]]
        records = [r for name in tasks for r in self._records(out, name, main, "" if name == task else f"{name}/")]
        values = [r["value"] for r in records]
        if len(tasks) > 1 and (None in values or not isclose(sum(values) / len(values), metrics[main], abs_tol=1e-9)):
            records = [{**r, "value": None} for r in records]  # a mean of the tasks' scores, not of their questions
        versions, shots = ({out[key].get(name, 0) for name in tasks} for key in ("versions", "n-shot"))
        version = out["versions"].get(task, "N/A")
        if version == "N/A" and len(versions) == 1:
            [version] = versions
        return {
            "task": group or task,
            "part": task if group else "all",
            "main": main,
            "beside": [metric for metric in BESIDE if metric in metrics],
            "metrics": metrics,
            "ci": ci | share_interval(main, metrics, records),
            "n": len(records),
            "protocol": f"{self.protocol}/{task}/v{version}/{'+'.join(map(str, sorted(shots)))}-shot{self.part}",
            "records": records,
        }

    def _records(self, out: dict[str, Any], task: str, main: str, prefix: str) -> list[dict[str, Any]]:
        samples = out["samples"][task]
        once = [s for s in samples if s.get("filter") == samples[0].get("filter")]  # each is told once for every filter
        made = (record(sample, main, sample.get("prompt_hash", "")) for sample in once)
        return [{**r, "sample": prefix + r["sample"]} for r in made]


def _within(out: dict[str, Any], group: str) -> list[str]:
    """All groups and tasks inside a group."""
    names = out.get("group_subtasks", {}).get(group, [])
    return [name for sub in names for name in (sub, *_within(out, sub))]
