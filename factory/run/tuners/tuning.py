"""The tuning stage of a run: data checked, parameters shown, training gone on with, the trained part saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import TrainerCallback

from factory import files, progress, tune
from factory.corpus.collate import Collator, Places, image_tokens
from factory.corpus.order import Order
from factory.corpus.prepared import Prepared, PreparedCollator, chunks, prepare, there
from factory.corpus.source import Lessons, Opened
from factory.corpus.stream import InTurn
from factory.errors import UserError
from factory.model.load import fingerprint_of, load
from factory.model.source import Wanted
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.recipe.schema import TuneSpec
from factory.report import followers
from factory.run.inputs import learning, running_digest, with_code
from factory.run.questions.suite import AnySuite
from factory.run.rundir import RunDir, Stage
from factory.run.tuners.checked import examiner, refuse_unknown_tasks
from factory.run.tuners.exam import answerer, tell
from factory.run.tuners.going_on import CHECKPOINTS, is_kept, last_of, learnt, refuse_other, sums_of
from factory.run.tuners.held_out import Held, held_of, learnt_and_held, said, told
from factory.run.tuners.opening import digest_of, failed, may_fail, shared_source, times_of
from factory.terminal import Console
from factory.train import zero
from factory.train.align import AlignCollator, Aligned
from factory.train.checkpoint import folder_name
from factory.train.loop import Shape, cut_by, refuse_other_shape, train, trained_in
from factory.train.losses import plot_losses
from factory.train.meter import Meter
from factory.train.packing import check_packing
from factory.tune import Tuner
from factory.tune.checkpoint import FILES, TENSORS
from factory.tune.initial import Initial

CHARACTERS_PER_TOKEN = 4
TUNED = "tuned"
COST = "cost.json"  # in a tuning's stage folder; no two trainings cost the same
LOG, LOSSES = "log.jsonl", "loss.png"  # in a tuning's stage folder
FEATURES = ".features"  # beside the runs: many runs read one file
EXAM_BATCH = 32
# Tokens; among rows nearly as long as each other a batch is drawn freely: rows of one question are all of one length.
ALIKE = 16
OF_TRAINING = {
    "group_by_length",
    "cache_features",
    "max_skipped",
    "decode",
    "workers",
    "pack",
    "streaming",
    "buffer",
}  # keys of the data that do not change a sample


def tune_model(
    recipe: Recipe, folder: RunDir, limit: int | None, model: Wanted, asked: Sequence[AnySuite] = ()
) -> Path:
    """Tune the recipe's model; the trained part goes to ``tuned/`` in the run folder. ``limit`` bounds the number of
    optimiser steps; ``asked`` are its question benchmarks, one of which may be held out.

    Raises ``UserError``, before the model is loaded, for data that cannot be used; and before the first step where
    nothing is trainable. ``check`` comes before.
    """
    spec = given(recipe.tune)
    source = shared_source(recipe, folder, model, spec.data)
    suites = {suite.node.label: suite for suite in asked}
    held = held_of(spec, suites, lambda data: shared_source(recipe, folder, model, data))
    refuse_unknown_tasks(spec, source)
    refuse_other(folder.path / "tune", inputs_of(recipe, source, limit, held))
    view = load(model)
    stage = tune_on(
        recipe, folder, "tune", source, running_digest(view), lambda: view, folder.path / TUNED, limit, held
    )
    if spec.exam:
        _examine(recipe, spec, folder)
    if held:
        Console().print(said(stage.summary), highlight=False)
    shown = stage.path / (LOSSES if recipe.report.plots else LOG)
    Console().print(f"tuned part: {folder.path / TUNED}\nloss:       {shown}", soft_wrap=True)
    return folder.path / TUNED


def tune_on(
    recipe: Recipe,
    folder: RunDir,
    name: str,
    source: Opened,
    model: str,
    load_view: Callable[[], ModelView],
    out: Path,
    limit: int | None = None,
    held: Held | None = None,
) -> Stage:
    """The stage ``name`` of a run, in which the recipe's tuner learns from ``source``, less what is ``held`` out; the
    trained part goes to ``out``.

    ``model`` is the identity of the view that ``load_view`` gives, which is asked for it only where there is work to
    do.
    """
    spec, inputs = given(recipe.tune), {"model": model, **inputs_of(recipe, source, limit, held)}
    refuse_other(folder.path / name, inputs)
    stage = folder.stage(name, inputs)
    if stage.done and folder.world.agree(f"{name} is kept", folder.owner and is_kept(out, stage.summary.get(TUNED))):
        progress.skipped(name)
        return stage
    tuner = spec.method.make()
    if not stage.done:
        refuse_other_shape(stage.path / CHECKPOINTS, cut_by(recipe.launch))
        _tune(recipe, spec, load_view(), tuner, source, inputs["steps"], stage, out, held)
    elif folder.owner:
        _restore(recipe, spec, load_view(), tuner, stage, out)
    folder.world.meet(f"stage {name} is written")
    return stage


def inputs_of(recipe: Recipe, source: Opened, limit: int | None, held: Held | None = None) -> dict[str, Any]:
    """What the result of a tuning follows from, beside its model's fingerprint."""
    spec = given(recipe.tune)
    return (
        {
            "precision": [recipe.model.dtype, recipe.model.quantize],
            "code": learning(spec),
            "tune": learnt(spec),
            "data": digest_of(source),
            "steps": min(steps_of(spec, len(learnt_and_held(spec, source)[0])), limit or math.inf),
            "seed": recipe.seed,
        }
        | ({"held_out": held.inputs} if held else {})
        | ({"initial": Initial.of(spec.initial).digest} if spec.initial else {})
    )


def _tune(
    recipe: Recipe,
    spec: TuneSpec,
    view: ModelView,
    tuner: Tuner,
    source: Opened,
    steps: int,
    stage: Stage,
    out: Path,
    held: Held | None,
) -> None:
    torch.manual_seed(recipe.seed)  # a tuner draws its starting values
    tuner.apply(view, spec.beside, words=dict.fromkeys(spec.new_tokens))
    if spec.initial:
        Initial.of(spec.initial).begin(tuner, view)
    refuse_kept_features(spec, view, tuner)
    show_trainable(view, tuner, spec)
    skipped = (_features(recipe, spec, view, source) if spec.data.cache_features else stage.path) / "skipped.jsonl"
    allowed = spec.data.max_skipped
    most = may_fail(source, allowed)
    packed = spec.data.max_tokens if spec.data.pack else None
    if packed:
        check_packing(view)
    read = Collator(view, source, spec.data.max_tokens, skipped if allowed else None, most, packed, tuner.tasks)
    collator: Callable[[Sequence[int]], dict[str, Tensor]] = read
    lengths, objective = None, None
    if spec.data.cache_features:
        prepared = _prepared(source, view, read, stage.run, skipped.parent)
        failed(skipped, source, allowed)
        if spec.stage == "align":
            collator = of_answers = AlignCollator(view, prepared)
            objective = Aligned(view, of_answers.answers)
        else:
            lengths, collator = -(-prepared.lengths() // ALIKE), PreparedCollator(view, prepared)
    elif spec.data.group_by_length and not spec.data.streaming:
        lengths = source.lengths(CHARACTERS_PER_TOKEN * image_tokens(view))
    numbers, aside = learnt_and_held(spec, source)
    lengths = lengths[numbers] if lengths is not None and spec.data.group_by_length else None
    shuffled = Order(len(numbers), spec.batch_size, recipe.seed, lengths)
    order = InTurn(spec.batch_size) if spec.data.streaming else shuffled
    console = Console()
    shape = Shape.of(spec, zero.world_size())
    console.print(
        f"{spec.stage} with {tuner.name}: {steps} steps of {spec.batch_size} samples ({shape.ranks} rank(s) x"
        f" {shape.accumulate} x {shape.micro}), {len(numbers)} samples, learning rate"
        f" {spec.learning_rate or tuner.learning_rate:g}",
        highlight=False,
        soft_wrap=True,
    )
    meter = Meter(view.device)
    looks = held.looks(view, collator, aside.tolist(), shape.micro) if held else None
    with ExitStack() as shown:
        watching = [_Progress(shown, stage.name), meter]
        if zero.is_first():
            watching += followers(recipe.report.also, stage.path)
        log = train(
            view,
            tuner,
            Places(order, steps, numbers),
            collator,
            spec,
            recipe.launch,
            steps,
            recipe.seed,
            stage.path / CHECKPOINTS,
            watching,
            objective,
            looks,
        )
    kept = stage.path / CHECKPOINTS / folder_name(looks.best) if looks and looks.best else None
    values = trained_in(kept) if kept else zero.whole_values(tuner.trainable)
    lost, steps = failed(skipped, source, allowed), max(row["step"] for row in log)
    last = [row["loss"] for row in log if "loss" in row][-1]
    found = {
        "steps": steps,
        "loss": last,
        **(told(looks, log) if looks else {}),
        "parameters": tuner.counts(),
        "skipped": lost,
    }
    if not isinstance(source, Lessons):
        found["data"] = source.audit.record()
    if stage.run.owner:
        _save(recipe, spec, view, tuner, found, out, values)
        files.write_jsonl(stage.path / LOG, log)
        if recipe.report.plots:
            plot_losses(log, f"{recipe.name}: {spec.stage} with {tuner.name}", stage.path / LOSSES)
        files.write_json(stage.path / COST, meter.record())
        found[TUNED] = sums_of(out, FILES)
    stage.finish(found)


def _save(
    recipe: Recipe,
    spec: TuneSpec,
    view: ModelView,
    tuner: Tuner,
    found: dict[str, Any],
    out: Path,
    values: dict[str, Tensor],
) -> None:
    about = {"stage": spec.stage, "run": recipe.name, "steps": found["steps"], "loss": found["loss"]}
    about |= {key: found[key] for key in ("kept", "looks") if key in found}
    tune.save(out, tuner, view, about, values)


def _restore(recipe: Recipe, spec: TuneSpec, view: ModelView, tuner: Tuner, stage: Stage, out: Path) -> None:
    """Write the trained part of a finished tuning anew, from its last checkpoint."""
    values = trained_in(last_of(stage, out))
    tuner.apply(view, spec.beside, words=dict.fromkeys(spec.new_tokens))
    _save(recipe, spec, view, tuner, stage.summary, out, values)
    stage.finish(stage.summary | {TUNED: sums_of(out, FILES)})


def _examine(recipe: Recipe, spec: TuneSpec, folder: RunDir) -> None:
    """Put the examination of the lessons' benchmark to the tuned model, as anyone would load it."""
    tuned = folder.path / TUNED
    benchmark, tuned_parts = examiner(spec), (*recipe.model.tuned, str(tuned))
    model = recipe.model.model_copy(update={"tuned": tuned_parts})
    stage = folder.stage(
        "exam",
        {
            "tuned": files.digest_file(tuned / TENSORS),
            "data": with_code(given(spec.data.lessons)),
            "per_task": spec.exam,
        },
    )
    (exam,) = stage.gather({"exam": lambda: benchmark.examine(answerer(load(model), benchmark, EXAM_BATCH), spec.exam)})
    if not stage.done:
        stage.finish({"samples": spec.exam})
    if folder.owner:
        tell(exam, tuned)


def _features(recipe: Recipe, spec: TuneSpec, view: ModelView, source: Opened) -> Path:
    """The folder, beside the runs, of the samples' features: it is told by the tower, the words' writing and the
    data.
    """
    data = spec.data.model_dump(mode="json", exclude=OF_TRAINING)
    about = {
        "tower": fingerprint_of(view.vision_tower),
        "pictures": view.processor.image_processor.to_dict(),
        "image": view.model.config.image_seq_length,
        "words": [len(view.tokenizer), view.writing.template, view.end_ids],
        "data": data,
        "batch": spec.batch_size,
        "found": [digest_of(source), times_of(source)],
    }
    return files.make_folder(Path(recipe.run.root) / FEATURES / files.digest(about)[:16])


def _prepared(source: Opened, view: ModelView, collator: Collator, folder: RunDir, kept: Path) -> Prepared:
    """The samples with their pictures' features, in folder ``kept``."""
    shown = done = there(kept)
    with progress.stage("features", chunks(len(source)), done) as bar:

        def show(now: int) -> None:
            nonlocal shown
            bar.advance(now - shown)
            shown = now

        return prepare(view, collator, len(source), kept, folder.world, show)


def steps_of(spec: TuneSpec, samples: int) -> int:
    """Optimiser steps; the last one of the last epoch is filled up from a next."""
    return spec.steps or math.ceil(spec.epochs * samples / spec.batch_size)


def show_trainable(view: ModelView, tuner: Tuner, spec: TuneSpec) -> None:
    """Print what is trained, part by part as the optimiser groups it, with the learning rates. Raises ``UserError``
    where that is nothing.
    """
    total = sum(p.numel() for p in view.model.parameters())
    if not any(p.requires_grad and p.numel() for p in view.model.parameters()):
        raise UserError(
            f"tuner '{tuner.name}' with tune.beside={list(tuner.beside)} leaves nothing to train; name a part or"
            " another tuner"
        )
    table = Table("trained", "tensors", "parameters", "share", "learning rate", box=None, pad_edge=False)
    rates = tuner.rates_by_part(spec.learning_rates or {}, spec.learning_rate or tuner.learning_rate, view)
    for name, tensors in tuner.by_part(view).items():
        n = sum(p.numel() for p in tensors.values())
        table.add_row(name, str(len(tensors)), f"{n:,}", f"{100 * n / total:.3g} %", f"{rates[name]:g}")
    n = sum(p.numel() for p in tuner.trainable.values())
    table.add_row("all", str(len(tuner.trainable)), f"{n:,}", f"{100 * n / total:.3g} % of {total:,}", "")
    Console().print(table)


def refuse_kept_features(spec: TuneSpec, view: ModelView, tuner: Tuner) -> None:
    """Raises ``UserError`` where features are kept of a vision tower that ``tuner``, applied to ``view``, trains."""
    tower = {id(p) for p in view.vision_tower.parameters()}
    if spec.data.cache_features and any(id(p) in tower for p in tuner.trainable.values()):
        raise UserError(
            f"tune.data.cache_features: tuner '{tuner.name}' trains the vision tower, whose features cannot be kept;"
            " leave cache_features out"
        )


class _Progress(TrainerCallback):
    """The run's own progress bar over optimiser steps."""

    def __init__(self, shown: ExitStack, name: str) -> None:
        self.shown, self.name = shown, name

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = self.shown.enter_context(progress.stage(self.name, total=state.max_steps, done=state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.advance()
