"""What an answer costs under each method: seconds, passes through the decoder, and their tokens beside the unsteered
answer's, measured on some test prompts.

Every method answers the same prompts from nothing, in one batch, at its chosen strength; no pass is shared with another
method. Seconds differ from run to run, so they are kept with the run, shown in its report and read by a comparison of
runs, and results.json has none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from factory import progress
from factory.bench import Asked, answer_prompts, asked_forms
from factory.diagnose.summary import Summary, Table
from factory.model.view import ModelView
from factory.run.methods.cells import placed
from factory.run.methods.comparison import Comparison
from factory.run.samples import thin
from factory.run.timing import timed
from factory.steer import LogitsMethod, PromptMethod, steer
from factory.steer.calls import rewritten
from factory.steer.logits import contrasted

SAMPLES, REPEATS = 8, 3
COUNTED = ("seconds", "passes", "tokens")


class BlockCall(NamedTuple):
    """One call of one decoder block: how many prompts it saw, and how many tokens, padding included."""

    rows: int
    tokens: int


def measure_costs(comparison: Comparison) -> tuple[Summary, dict[str, dict[str, float]]]:
    """The table of costs, and each by BENCHMARK/METHOD-DIRECTION as a run's costs.json has them; of every method in
    every direction, measured once per run folder.
    """
    study = comparison.study
    stage = study.folder.stage("cost", {"scored": comparison.scored, "counted": COUNTED})
    prompts = asked_forms(study.bench, thin(study.samples["test"], SAMPLES))

    def measured(name: str, job: Callable[[], Any]) -> dict[str, Any]:
        return {"name": name, **_measured(study.view, job, len(prompts))}

    rows = progress.gather(stage, {name: partial(measured, name, job) for name, job in _jobs(comparison, prompts)})
    if not stage.done:
        stage.finish({"measured": len(rows)})
    prices = {f"{study.benchmark.name}/{r['name']}": {f"{k}_per_answer": r[k] for k in COUNTED} for r in rows}
    return _summary(rows, comparison.labels.unsteered), prices


def _jobs(comparison: Comparison, asked: Sequence[Asked]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What answers the prompts, by method and direction."""
    study, bench = comparison.study, comparison.study.bench
    prompts, most = [p for *_, p in asked], bench.max_new_tokens
    strengths = {(c.method, c.direction): c.strength for c in comparison.choices}
    for label, method in comparison.methods.items():
        for direction in comparison.directions:
            name = f"{label}-{direction}"
            if isinstance(method, PromptMethod):
                shown = [comparison.examples(s, form, direction, method.shots) for s, form, _ in asked]

                def both(method: Any = method, direction: Any = direction, shown: Any = shown) -> None:
                    length = method.max_new_tokens or most
                    again = rewritten(bench.view, method, prompts, direction, shown)
                    answer_prompts(bench.view, again, length, bench.among, apart=True)

                yield name, both
            elif isinstance(method, LogitsMethod):
                at = [strengths[label, direction]]
                yield name, partial(contrasted, bench.view, method, prompts, direction, at, most, bench.among)
    for f in comparison.kept:
        steering = placed(f, study.layer, strengths[f.label, f.direction])

        def steered(steering: Any = steering) -> None:
            with steer(bench.view, steering):
                answer_prompts(bench.view, prompts, most, bench.among, apart=True)

        yield f"{f.label}-{f.direction}", steered


@contextmanager
def decoder_work(view: ModelView) -> Iterator[list[BlockCall]]:
    """Collects what each call of each decoder block processes."""
    calls: list[BlockCall] = []

    def count(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        calls.append(BlockCall(output.shape[0], output.shape[0] * output.shape[1]))

    handles = [layer.register_forward_hook(count) for layer in view.layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _measured(view: ModelView, job: Callable[[], Any], answers: int) -> dict[str, float]:
    with decoder_work(view) as calls:
        job()
    return {
        "seconds": median(timed(job, view.device)[1] for _ in range(REPEATS)) / answers,
        "passes": sum(call.rows for call in calls) / view.depth / answers,
        "tokens": sum(call.tokens for call in calls) / view.depth / answers,
    }


def _summary(rows: list[dict[str, Any]], unsteered: str) -> Summary:
    base = [r for r in rows if r["name"].rpartition("-")[0] == unsteered]

    def beside(r: dict[str, Any], what: str) -> float | None:
        return r[what] / (sum(b[what] for b in base) / len(base)) if base else None

    lines = []
    for r in rows:
        method, _, direction = r["name"].rpartition("-")
        work = beside(r, "tokens")
        extra = None if work is None else work - 1
        lines.append((method, direction, r["seconds"], beside(r, "seconds"), r["passes"], r["tokens"], extra))
    columns = (
        "method",
        "toward",
        "seconds an answer",
        "x unsteered",
        "passes an answer",
        "decoder tokens an answer",
        "extra forwards an answer",
    )
    return Summary(
        "What an answer costs",
        tables=(
            Table(
                "cost",
                f"Cost, measured on {SAMPLES} test samples or all, in one batch; extra forwards in units of an"
                " unsteered answer's decoder work",
                columns,
                tuple(lines),
            ),
        ),
    )
