"""A hundred further multimodal tasks through lmms-eval, in an environment and a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from eval_suite.benchmark import Reported
from factory.errors import UserError
from factory.model.load import find
from factory.registry import Params, register
from factory.run.harness import Job
from factory.steer import artefact

PROJECT = Path(__file__).parents[2]


class LmmsEvalParams(Params):
    """``tasks`` by lmms-eval's names; ``python`` is the interpreter of the environment that has lmms-eval and this project
    (``pip install --no-deps``); ``include`` a folder of own task files."""

    tasks: tuple[str, ...] = Field(min_length=1)
    python: str = sys.executable
    include: str | None = None
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 1


@register("benchmark", "lmms_eval")
class LmmsEval(Reported):
    """Multimodal tasks of lmms-eval 0.7; its exit code says nothing, so its results file is what counts."""

    Params = LmmsEvalParams
    scorer: ClassVar[str] = "lmms-eval"

    def __init__(self, params: LmmsEvalParams) -> None:
        self.params = params
        asks = "from importlib.metadata import version; print(version('lmms-eval'))"
        try:
            told = subprocess.run([params.python, "-c", asks], capture_output=True, text=True, check=True, env=_environment())
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"benchmark lmms_eval: {params.python} has no lmms-eval; make an environment for it and name it: python: /path/to/python") from error
        self.version = told.stdout.strip()

    @property
    def protocol(self) -> str:
        return f"lmms-eval/{self.version}"

    def harness(self, job: Job) -> list[dict[str, Any]]:
        """One result per task: name, metrics, intervals, n, protocol. Raises ``UserError`` where lmms-eval leaves no result for one."""
        model, out, p = f"pretrained={find(job.model).folder},dtype={job.model.dtype},device={job.model.device}", job.folder / "lmms-eval", self.params
        if job.steering:
            model += f",artefact={artefact.save(job.folder / 'artefact', job.steering, job.view)}"
        command = [p.python, "-m", "lmms_eval", "--model", "steering_factory", "--model_args", model, "--tasks", ",".join(p.tasks),
                   "--batch_size", str(p.batch_size), "--output_path", str(out), "--log_samples"]  # fmt: skip
        command += ["--include_path", str(Path(p.include).expanduser())] if p.include else []
        command += ["--limit", str(job.limit or p.limit)] if job.limit or p.limit else []
        before = set(out.rglob("*results.json"))
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment())
        fresh = sorted(set(out.rglob("*results.json")) - before, key=lambda path: path.stat().st_mtime)
        content = json.loads(fresh[-1].read_text(encoding="utf-8")) if fresh else {}
        lacking = [task for task in p.tasks if not content.get("results", {}).get(task)]
        if lacking:
            tail = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise UserError(f"benchmark lmms_eval: no result for {', '.join(lacking)} (its exit code was {done.returncode}): {tail}")
        return [self._result(content, task, out) for task in p.tasks]

    def _result(self, content: dict[str, Any], task: str, out: Path) -> dict[str, Any]:
        found = {k.split(",")[0]: float(v) for k, v in content["results"][task].items() if isinstance(v, int | float) and "_stderr" not in k and "," in k}
        if not found:
            raise UserError(f"benchmark lmms_eval: the result of {task} holds no number; see {out}")
        n = content.get("n-samples", {}).get(task, {}).get("effective", 0)
        version = content.get("versions", {}).get(task)
        return {"task": task, "main": next(iter(found)), "metrics": found, "ci": {}, "n": n, "protocol": f"{self.protocol}/{task}/v{version}", "records": []}


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}
