"""The time of a tuning before it is run: what is counted is what the run does, and no weight is read."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from factory import files
from factory.cli import main
from factory.model.facts import find_facts
from factory.model.source import Wanted
from factory.recipe import load
from factory.run.pipeline import run
from factory.run.plan import computed_steps
from factory.run.plan.blocks import Sizes
from factory.run.plan.computed_steps import STEPS, Stepped, Work, compute_tuning
from factory.run.plan.devices import DEVICES
from factory.run.tuners.held_out import held_of, learnt_and_held
from factory.run.tuners.opening import planned_source
from factory.stopwatch import Stopwatch
from factory.train.loop import Shape
from tests.factory.train.case import write_data
from tests.tiny import fresh_view, saved_tiny

RECIPE = """\
name: planned
model: {{path: {root}/{model}}}
run: {{root: {root}/runs}}
tune:
  tuner: {{type: lora, rank: 2}}
  data: {{path: {root}/data.jsonl, max_tokens: 200}}
  batch_size: 4
  micro_batch: 2
  steps: 7
  save_every: 3
  keep_checkpoints: 9
"""
HELD = ["tune.held_out.share=0.25", "tune.held_out.every=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    write_data(root)
    saved_tiny(root / "model")
    shutil.copytree(root / "model", root / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    return root


def recipe_of(root, *given, model="model"):
    path = root / "planned.yaml"
    path.write_text(RECIPE.format(root=root, model=model))
    return load(path, given)


def opened(recipe):
    spec, model = recipe.tune, Wanted.of(recipe.model)
    source = planned_source(recipe, spec.data, spec.batch_size, model)
    held = held_of(spec, {}, lambda data: planned_source(recipe, data, spec.batch_size, model))
    return source, held


def work_of(recipe, steps=7):
    source, held = opened(recipe)
    aside = len(learnt_and_held(recipe.tune, source)[1])
    return Work.of(recipe.tune, Shape.of(recipe.tune, 1), steps, aside, held)


@pytest.mark.parametrize("keep", [None, "best", "last"])
def test_what_is_counted_of_a_tuning_is_what_its_run_does(root, keep):
    given = [f"name=counted-{keep}", *(HELD if keep else []), *([f"tune.held_out.keep={keep}"] if keep else [])]
    recipe = recipe_of(root, *given)
    work, watch = work_of(recipe), Stopwatch(itertools.count().__next__, lambda: None)
    with watch.running():
        folder = run(recipe)
    log = files.read_jsonl(folder / "tune/log.jsonl")
    kept = list((folder / "tune").glob("*/checkpoint-*"))
    assert sum("loss" in row for row in log) == work.steps == 7
    assert sum("eval_loss" in row for row in log) == work.looks == (4 if keep else 0)
    assert len(kept) == work.checkpoints == (4 if keep == "best" else 3)
    entered = Counter(part for (chunk, (part, _)), ticks in watch.seconds.items() if chunk[0] == "cycle" and ticks)
    assert [entered[part] for part in ("update", "clip", "checkpoint", "look")] == [7, 7, work.checkpoints, work.looks]
    assert work.parts["pass"] == 7 * 2 and work.parts["look"] == work.looks * 3


class Moved(TorchDispatchMode):
    """Operations on tensors as large as the trained one, and the values that they read and write."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.operations, self.values = numbers, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        moved = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        values = sum(t.numel() for t in moved if t.numel() == self.numbers)
        self.values, self.operations = self.values + values, self.operations + bool(values)
        return out


def counted(job, numbers=1000):
    with Moved(numbers) as moved:
        job()
    return moved.operations, moved.values / numbers


def test_the_optimiser_s_and_the_clipping_s_work_is_what_torch_does():
    p = torch.nn.Parameter(torch.randn(1000))
    p.grad = torch.randn(1000)
    adam = torch.optim.AdamW([p], foreach=False, weight_decay=0.1)
    adam.step()
    clip = lambda: torch.nn.utils.clip_grad_norm_([p], 0.1, foreach=False)
    assert counted(adam.step) == (computed_steps.KERNELS, computed_steps.READ_AND_WRITTEN)
    assert counted(clip) == (computed_steps.CLIPS, computed_steps.CLIPPED)


def test_what_an_optimiser_steps_over_takes_its_bytes_or_its_launches():
    free, slow = replace(DEVICES["h100"], call=0.0), replace(DEVICES["h100"], bandwidth=math.inf)
    trained = Stepped(10, 10**6, 0.5)
    assert trained.seconds(free, 20, 9) == pytest.approx(20 * 4e6 / (0.7 * 3.35e12))
    assert trained.seconds(slow, 20, 9) == pytest.approx(9 * 1e-5)


def test_every_part_of_a_tuning_is_planned_without_its_weights(root, capsys):
    recipe = recipe_of(root, *HELD, model="weightless")
    assert main(["plan", str(root / "planned.yaml"), *HELD, "--device", "cpu"]) == 2
    said, error = capsys.readouterr()
    assert "model.safetensors" in error and "computed, not measured: cpu" in said
    for words in ("forward and backward", "optimiser's updates", "checkpoints", "batches held out"):
        assert words in said
    assert not (root / "runs/planned").exists()
    model = Wanted.of(recipe.model)
    facts, (source, held) = find_facts(model)[0], opened(recipe)
    view = fresh_view()
    recipe.tune.method.make().apply(view)
    trained = Stepped.of(view, Sizes.of(facts))
    assert trained.numbers == sum(p.numel() for p in view.model.parameters() if p.requires_grad)
    told = compute_tuning(recipe, "h100", facts, model, source, trained, 100, held)
    parts = told.parts
    assert set(parts) == {"begin and end", "read", "pass", "clip", "update", "step", "checkpoint", "look"}
    assert all(seconds > 0 for seconds in parts.values())
    once = trained.seconds(DEVICES["h100"], computed_steps.READ_AND_WRITTEN, computed_steps.KERNELS)
    assert parts["update"] == pytest.approx(100 * once)
    assert told.work.checkpoints == told.work.looks == 50 and STEPS < told.work.steps
