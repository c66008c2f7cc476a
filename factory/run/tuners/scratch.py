"""Training runs: build a model from its recipe, train it on the benchmark's lessons, examine it, save it for the
zoo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from factory.benchmark import Curriculum, WithCorpus, WithExam, WithLessons, WithPictures, WithTexts
from factory.errors import UserError
from factory.model.family import frozen
from factory.model.load import load
from factory.model.source import family_of
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.explain import told_in_one_line
from factory.recipe.nodes import given
from factory.recipe.schema import TrainSpec
from factory.report import followers
from factory.run.inputs import running, with_code
from factory.run.rundir import RunDir, Stage
from factory.run.tuners.exam import EXAM, answerer, tell
from factory.run.tuners.going_on import CHECKPOINTS, is_kept, last_of, learnt, refuse_other, sums_of
from factory.terminal import Console
from factory.train.scratch.build import TinyLlava, build_llava, train_tokenizer
from factory.train.scratch.lessons import LessonStream
from factory.train.scratch.trainer import train_lessons
from factory.train.scratch.vision import pretrain_connector, pretrain_vision

EXAM_BATCH = 96
Watching = Sequence[TrainerCallback]


def build(recipe: Recipe, benchmark: WithCorpus) -> ModelView:
    """A randomly initialised model with a tokenizer trained on the benchmark's words."""
    with told_in_one_line("model.build", TinyLlava):
        sizes = TinyLlava.model_validate(recipe.model.build or {})
    model, processor = build_llava(sizes, train_tokenizer(benchmark.corpus(), sizes.vocabulary), recipe.seed)
    return ModelView(frozen(model), processor, family_of(model.config))


def curriculum(recipe: Recipe) -> Curriculum:
    """The benchmark whose lessons a recipe trains on. Raises ``UserError`` where it lacks what the training asks of it;
    what only phases without steps ask it may lack.
    """
    data, spec = given(recipe.data), given(recipe.train)
    benchmark = data.make()
    asked = (
        ("lesson", WithLessons, spec.steps),
        ("text_lesson", WithTexts, spec.text_steps),
        ("picture", WithPictures, spec.vision_steps + spec.connector_steps),
        ("corpus", WithCorpus, not _is_there(recipe)),
        ("examine", WithExam, True),
    )
    if lacking := [name for name, kind, needed in asked if needed and not isinstance(benchmark, kind)]:
        raise UserError(f"data: benchmark '{data.type}' has no {' and no '.join(lacking)} to train on; use scenes")
    return cast(Curriculum, benchmark)


def check_training(recipe: Recipe) -> None:
    """What can be checked before a training from scratch makes or reads a model. Raises ``UserError``."""
    curriculum(recipe)
    if recipe.model.dtype != "float32" or recipe.model.quantize:
        raise UserError(
            "train: all weights are trained, whose updates are too small for less than float32; leave model.dtype and"
            " model.quantize out"
        )


def _is_there(recipe: Recipe) -> bool:
    """Whether the model is read, and not built."""
    return bool(recipe.model.path or recipe.model.zoo)


def train_model(recipe: Recipe, folder: RunDir, limit: int | None = None) -> None:
    """Train, examine and save to ``model/`` in the run folder; ``limit`` bounds the number of optimiser steps."""
    benchmark, spec = curriculum(recipe), given(recipe.train)
    if limit is not None:
        spec = spec.model_copy(update={"steps": limit})
    view = load(recipe.model) if _is_there(recipe) else build(recipe, benchmark)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    inputs = {
        "model": recipe.model.model_dump(),
        "start": running(view),
        "data": with_code(given(recipe.data)),
        "train": learnt(spec),
        "seed": recipe.seed,
    }
    for name in ("train", "connector", "text", "vision"):  # the last that has begun says most
        refuse_other(folder.path / name, inputs)
    together, out = folder.stage("train", inputs), folder.path / "model"
    told: Callable[[Stage], Watching] = lambda stage: followers(recipe.report.also, stage.path)

    def learn() -> dict[str, str]:
        torch.manual_seed(recipe.seed)
        lessons = LessonStream(benchmark.lesson, spec.batch_size, spec.steps)
        train_lessons(view, lessons, spec, spec.steps, recipe.seed, together.path / CHECKPOINTS, told(together))
        return _save(view, out)

    if not together.done:
        _apart(view, benchmark, spec, recipe.seed, folder, inputs, told)
        saved = learn()
        exam = benchmark.examine(answerer(view, benchmark, EXAM_BATCH))
        together.finish({"exam": exam, "steps": spec.steps, "model": saved})
    elif not is_kept(out, together.summary.get("model")):
        last_of(together, out)  # where there is nothing left to learn
        together.finish(together.summary | {"model": learn()})
    tell(together.summary["exam"], out)
    Console().print(f"model: {out}", soft_wrap=True)


def _save(view: ModelView, out: Path) -> dict[str, str]:
    """Write a model to ``out``; the checksums of its files."""
    view.model.save_pretrained(out)
    view.processor.save_pretrained(out)
    return sums_of(out, sorted(path.name for path in out.iterdir() if path.is_file() and path.name != EXAM))


def _apart(
    view: ModelView,
    benchmark: Curriculum,
    spec: TrainSpec,
    seed: int,
    folder: RunDir,
    inputs: dict[str, Any],
    told: Callable[[Stage], Watching],
) -> None:
    """Train the vision tower on pictures, the language model on texts, and the connector between them, each alone."""

    def text(checkpoints: Path, watching: Watching) -> None:
        torch.manual_seed(seed)
        train_lessons(
            view,
            LessonStream(benchmark.text_lesson, spec.batch_size, spec.text_steps),
            spec,
            spec.text_steps,
            seed,
            checkpoints,
            watching,
        )

    parts = (
        ("vision", view.vision_tower, spec.vision_steps, lambda *at: pretrain_vision(view, benchmark, spec, seed, *at)),
        ("text", view.decoder, spec.text_steps, text),
        (
            "connector",
            view.connector,
            spec.connector_steps,
            lambda *at: pretrain_connector(view, benchmark, spec, seed, *at),
        ),
    )
    for name, part, steps, learn in parts:
        stage = folder.stage(name, inputs)

        def weights(
            part: nn.Module = part, steps: int = steps, learn: Callable = learn, stage: Stage = stage
        ) -> dict[str, Tensor]:
            if steps:
                learn(stage.path / CHECKPOINTS, told(stage))
            return {k: t.contiguous() for k, t in part.state_dict().items()}

        part.load_state_dict(stage.chunk("weights", weights))
        if not stage.done:
            stage.finish({"parameters": sum(p.numel() for p in part.parameters())})
