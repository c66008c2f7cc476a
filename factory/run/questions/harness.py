"""Benchmarks that another harness runs by itself on the live model: one stage per arm, steered as a whole."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from factory import files, progress
from factory.benchmark import Harness, Rows
from factory.model.source import Wanted
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.schema import ModelSpec, Node
from factory.run.inputs import answering, with_code
from factory.run.questions.arms import Arm
from factory.run.rundir import RunDir
from factory.steer import Steering


@dataclass(frozen=True)
class Job:
    """What a harness is given: the model, steered already for one that works in this process, and what makes it so for
    one that does not; ``folder`` is its own to write in."""

    view: ModelView
    model: ModelSpec
    steering: Steering | None
    folder: Path
    limit: int | None
    seed: int


class HarnessSuite:
    """One harness of a recipe; ``harness(job)`` of its benchmark gives results by task. Prompt and decoding-time
    methods do not apply.
    """

    def __init__(self, node: Node, recipe: Recipe, limit: int | None, model: Wanted | None = None) -> None:
        self.node, self.recipe, self.limit = node, recipe, limit
        self.model = model.asked if model else recipe.model
        self.benchmark: Harness = node.make()

    def run(self, folder: RunDir, view: ModelView, arm: Arm) -> tuple[Rows, Rows, dict[str, Any] | None]:
        """Rows of results.json, skipped samples (none), and what the arm cost."""
        if not arm.lives_in_model:
            return [], [], None
        inputs = {
            **answering(view),
            "steering": arm.about,
            "arm": arm.facts,
            "code": version("steering-factory"),
            "benchmark": with_code(self.node),
            "protocol": self.benchmark.protocol,
            "items": self.benchmark.made_of(),
            "limit": self.limit,
            "seed": self.recipe.seed,
        }
        stage = folder.stage(files.file_name("bench", self.node.label, arm.name), inputs)
        job = Job(view, self.model, arm.steering, stage.path, self.limit, self.recipe.seed)
        [results] = progress.gather(stage, {"results": lambda: self._evaluate(job, arm)})
        if not stage.done:
            stage.finish({"tasks": [r["task"] for r in results if _whole(r)]})
        rows = [self._row(folder, arm, result) for result in results]
        n = sum(r["n"] for r in results if _whole(r))
        return (
            rows,
            [],
            {
                "parameters": arm.parameters,
                "generated": n,
                "seconds_per_answer": results[0]["seconds"] / n if n else None,
                "peak_bytes": None,
            },
        )

    def _evaluate(self, job: Job, arm: Arm) -> Rows:
        began = time.perf_counter()
        with arm.steered(job.view):
            results = self.benchmark.harness(job)
        return [{**r, "seconds": time.perf_counter() - began} for r in results]

    def _row(self, folder: RunDir, arm: Arm, result: dict[str, Any]) -> dict[str, Any]:
        label = f"{self.node.label}.{result['task']}"
        about = {
            "benchmark": self.benchmark.name,
            "label": label,
            "protocol": result["protocol"],
            "seed": self.recipe.seed,
            **arm.facts,
        }
        if folder.world.first and _whole(result):
            path = folder.path / "predictions" / files.file_name(label) / f"{files.file_name(arm.name)}.jsonl"
            files.write_jsonl(path, [{**about, **r} for r in result["records"]])
        prompts = " ".join(sorted(r["prompt_digest"] for r in result["records"]))
        return {
            **about,
            "split": "test",
            "task": result.get("part", "all"),
            "n": result["n"],
            "metrics": result["metrics"],
            "ci": result["ci"],
            "main": result["main"],
            "beside": result.get("beside", []),
            "scorer": self.benchmark.protocol,
            "prompt_hash": hashlib.sha256(prompts.encode()).hexdigest()[:16],
            "parse_failure_rate": None,
            "chosen": True,
        }


def _whole(result: dict[str, Any]) -> bool:
    """Whether a result is a task's or a group's own, and no part of a group's."""
    return result.get("part", "all") == "all"
