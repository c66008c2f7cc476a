"""A hundred further multimodal tasks through lmms-eval, in an environment and a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from eval_suite.bridges.results import measured, record, share_interval
from eval_suite.bridges.task_files import made_of
from eval_suite.released import read_jsonl
from factory.benchmark import Harness
from factory.errors import UserError
from factory.model.load import find
from factory.recipe.paths import RecipePath
from factory.registry import Params, register
from factory.run.questions.harness import Job
from factory.steer import artefact

PROJECT = Path(__file__).parents[2]


class LmmsEvalParams(Params):
    """``tasks`` by lmms-eval's names; ``python`` is the interpreter of the environment that has lmms-eval and this
    project (``pip install --no-deps``); ``include`` a folder of own task files.

    ``limit`` questions of each task.
    """

    tasks: tuple[str, ...] = Field(min_length=1)
    python: str = sys.executable
    include: RecipePath | None = None
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 1


@register("benchmark", "lmms_eval")
class LmmsEval(Harness):
    """Multimodal tasks of lmms-eval 0.7; its exit code says nothing, so its results file is what counts."""

    Params = LmmsEvalParams
    pictured = True
    scorer: ClassVar[str] = "lmms-eval"

    def __init__(self, params: LmmsEvalParams) -> None:
        self.params = params
        asks = "from importlib.metadata import version; print(version('lmms-eval'))"
        try:
            told = subprocess.run(
                [params.python, "-c", asks], capture_output=True, text=True, check=True, env=_environment()
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"benchmark lmms_eval: {params.python} has no lmms-eval; make an environment for it and name it:"
                " python: /path/to/python"
            ) from error
        self.version = told.stdout.strip()

    @property
    def protocol(self) -> str:
        return f"lmms-eval/{self.version}"

    def made_of(self) -> dict[str, str] | None:
        return made_of(self.params.include)

    def harness(self, job: Job) -> list[dict[str, Any]]:
        """One result per task: name, metrics, intervals, n, protocol, and per-question records. Raises ``UserError``
        where lmms-eval leaves no result for one.
        """
        model, out, p = (
            f"pretrained={find(job.model).folder},dtype={job.model.dtype},device={job.model.device}",
            job.folder / "lmms-eval",
            self.params,
        )
        if job.steering:
            model += f",artefact={artefact.save(job.folder / 'artefact', job.steering, job.view)}"
        command = [
            p.python,
            "-m",
            "lmms_eval",
            "--model",
            "steering_factory",
            "--model_args",
            model,
            "--tasks",
            ",".join(p.tasks),
            "--batch_size",
            str(p.batch_size),
            "--output_path",
            str(out),
            "--log_samples",
        ]
        command += ["--include_path", str(Path(p.include).expanduser())] if p.include else []
        command += ["--limit", str(job.limit or p.limit)] if job.limit or p.limit else []
        before = set(out.rglob("*results.json"))
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment())
        fresh = sorted(set(out.rglob("*results.json")) - before, key=lambda path: path.stat().st_mtime)
        content = json.loads(fresh[-1].read_text(encoding="utf-8")) if fresh else {}
        lacking = [task for task in p.tasks if not content.get("results", {}).get(task)]
        if lacking:
            tail = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise UserError(
                f"benchmark lmms_eval: no result for {', '.join(lacking)} (its exit code was {done.returncode}): {tail}"
            )
        return [self._result(content, task, fresh[-1]) for task in p.tasks]

    def _result(self, content: dict[str, Any], task: str, path: Path) -> dict[str, Any]:
        metrics, ci = measured(content["results"][task])
        if not metrics:
            raise UserError(f"benchmark lmms_eval: the result of {task} holds no number; see {path}")
        main, version = next(iter(metrics)), content.get("versions", {}).get(task)
        told = path.with_name(path.name.replace("results.json", f"samples_{task}.jsonl"))
        samples = read_jsonl(told) if told.is_file() else []
        records = [
            record(s, main, hashlib.sha256(f"{s.get('doc_hash')}{s.get('input')}".encode()).hexdigest()[:16])
            for s in samples
        ]
        ci |= share_interval(main, metrics, records)
        n = content.get("n-samples", {}).get(task, {}).get("effective", len(records))
        return {
            "task": task,
            "main": main,
            "metrics": metrics,
            "ci": ci,
            "n": n,
            "protocol": f"{self.protocol}/{task}/v{version}",
            "records": records,
        }


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}
