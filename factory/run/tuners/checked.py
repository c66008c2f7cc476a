"""What can be refused of a tuning before its data and its model are read."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from factory.benchmark import WithExam
from factory.blame import blaming
from factory.corpus.source import Opened
from factory.errors import UserError, did_you_mean, quoted
from factory.model.load import device_for
from factory.recipe.nodes import given
from factory.recipe.schema import LaunchSpec, ModelSpec, TuneSpec
from factory.train import zero
from factory.train.loop import Shape
from factory.tune.initial import Initial


def check(
    spec: TuneSpec,
    model: ModelSpec,
    section: str = "tune",
    ranks: int | None = None,
    launch: LaunchSpec | None = None,
) -> None:
    """What can be checked before data and model are read, for so many ranks or those there are; also takes up the
    recipe's number of threads.
    """
    if spec.threads:
        torch.set_num_threads(spec.threads)
    with blaming(spec):
        Shape.of(spec, ranks or zero.world_size())
        if spec.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
            raise UserError(
                "optimizer: adamw_8bit needs bitsandbytes, which is not installed: pip install bitsandbytes"
            )
        if spec.initial:
            Initial.of(spec.initial)
        if spec.new_tokens and launch and launch.zero == 3:
            raise UserError("new_tokens: ZeRO-3 cuts the embeddings whose rows are trained; use launch.zero=2")
        if spec.data.pack and not spec.method.plugin.packable:
            raise UserError(
                f"data.pack: tuner '{spec.method.type}' looks at whole rows, which packing breaks up; leave it out"
            )
        if spec.method.make().tasks:
            _check_tasks_are_told(spec)
    if spec.exam:
        examiner(spec)
    check_precision(spec, model, section)


def _check_tasks_are_told(spec: TuneSpec) -> None:
    key = next((key for key in ("cache_features", "pack", "streaming") if getattr(spec.data, key)), None)
    if key:
        raise UserError(
            f"data.{key}: tuner '{spec.method.type}' tells the samples' tasks apart, which are not known then; leave"
            f" {key} out"
        )


def refuse_unknown_tasks(spec: TuneSpec, source: Opened) -> None:
    """Raises ``UserError`` where the tuner names a task that no sample of ``source`` is of."""
    named = spec.method.make().tasks
    missing, found = set(named), set[str]()
    for i in range(len(source) if named else 0):
        found.add(source.task(i))
        if not (missing := missing - found):
            return
    if missing:
        with blaming(spec.method):
            there, odd = sorted(found - {""}), min(missing)
            raise UserError(
                f"no training sample is of the task {quoted(odd)}; they are of {', '.join(there) or 'no named task'}."
                + did_you_mean(odd, there)
            )


def examiner(spec: TuneSpec) -> WithExam:
    """Who examines the tuned model: the benchmark of its lessons. Raises ``UserError`` where that has no exam."""
    lessons = given(spec.data.lessons)
    benchmark = lessons.make()
    if not isinstance(benchmark, WithExam):
        raise UserError(f"tune.exam: benchmark '{lessons.type}' has no examination; leave tune.exam out")
    return benchmark


def check_precision(spec: TuneSpec, model: ModelSpec, section: str = "tune") -> None:
    """Raises ``UserError`` for a model whose precision no gradient can be computed in: what is trained is float32."""
    if spec.fp16 and device_for(model.device).type == "cpu":
        raise UserError(f"{section}.fp16: float16 with a scaled loss needs a GPU; on a CPU use {section}.bf16=true")
    if model.dtype == "float16" and not spec.fp16:
        raise UserError(
            f"model.dtype=float16: gradients overflow in float16 unless the loss is scaled: add {section}.fp16=true,"
            f" or tune in bfloat16 (model.dtype=bfloat16 {section}.bf16=true) or in float32"
        )
    if model.dtype == "bfloat16" and not spec.bf16:
        raise UserError(
            f"model.dtype=bfloat16: what is trained is float32, so computing has to be mixed: add {section}.bf16=true,"
            " or use model.dtype=float32"
        )
