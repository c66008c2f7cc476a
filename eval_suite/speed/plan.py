"""What ``plan`` predicts against what a run then takes: peak memory of tensors and time, on the shipped tiny model or another.

    python -m eval_suite.speed.plan [KEY=VALUE ...]

It plans and runs a small Scenes recipe in a temporary folder. On a GPU the peak is the allocator's, on the CPU that of all live
tensors. Forwards are compared exactly in tests/factory/test_plan.py.
"""

from __future__ import annotations

import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from factory.model.load import load as load_model
from factory.model.view import ModelView
from factory.recipe import Recipe, loads
from factory.run.calibrate import calibrate
from factory.run.comparison import Comparison
from factory.run.estimate import estimate, memory
from factory.run.rundir import RunDir
from factory.run.study import Study

RECIPE = """\
name: plan_against_run
model: {zoo: tiny}
data: {type: scenes, scoring: open_ended, per_task: {train: 4, dev: 4, test: 4}}
diagnostic: {type: mcr, draws: 3}
collect: {batch_size: 16}
steering: [none, instruction, static, l2s, {type: amps, betas: [0, 0.5]}, {type: dose, doses: [0.5, 1, 2]}]
evaluate: {strengths: [0.5, 1, 2], batch_size: 16, max_new_tokens: 6}
"""


class LiveTensors(TorchDispatchMode):
    """Bytes of all tensor storages that operations made and that are alive, and the most there ever were."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
        self.sizes, self.now = held, sum(held.values())
        self.peak = self.now

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return
        self.sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@contextmanager
def peak_memory(view: ModelView) -> Iterator[list[int]]:
    """A list that holds, after the block, the peak bytes: the model's weights and what the block made beside them."""
    peak = []
    if view.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.append(torch.cuda.max_memory_allocated())
    else:
        live = LiveTensors(view.model)
        with live:
            yield peak
        peak.append(live.peak)


def measure(recipe: Recipe, tracked: bool) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each stage, and its peak bytes where ``tracked`` (which slows the run down, so that its seconds do not count)."""
    seconds, peaks = {}, {}
    view = load_model(recipe.model)
    with tempfile.TemporaryDirectory() as home, RunDir.open(Path(home), recipe.name, Path("plan.yaml"), "", {}) as folder:
        study = Study(recipe, folder, view, None)
        comparison = Comparison(study)
        stages = {"diagnose": study.diagnosed, "collect": lambda: study.collected, "fit": lambda: comparison.fitted, "trials": lambda: comparison.ready, "dev and test": comparison.run}
        for name, work in stages.items():
            start = time.perf_counter()
            if tracked:
                with peak_memory(view) as peak:
                    work()
                peaks[name] = peak[0]
            else:
                work()
            seconds[name] = time.perf_counter() - start
    return seconds, peaks


def main(overrides: Sequence[str]) -> None:
    recipe = loads(RECIPE, overrides=overrides)
    found = estimate(recipe)
    measured = calibrate(recipe, load_model(recipe.model), found.layer)
    predicted = {s.name: measured.seconds(s, found.methods, len(recipe.evaluate.directions)) for s in found.stages}
    predicted["dev and test"] = predicted.pop("dev") + predicted.pop("test")
    seconds, _ = measure(recipe, tracked=False)
    _, peaks = measure(recipe, tracked=True)
    peak = max(peaks.values())
    table = Table("what", "predicted", "measured", "predicted / measured")
    for name, took in [*seconds.items(), ("all", sum(seconds.values()))]:
        told = predicted.get(name, sum(predicted.values()))
        table.add_row(name, f"{told:.2f} s", f"{took:.2f} s", f"{told / took:.2f}")
    told = memory(recipe, found.model, measured.prompt_tokens)
    table.add_row("peak memory", f"{told / 1e6:.1f} MB", f"{peak / 1e6:.1f} MB", f"{told / peak:.2f}")
    Console().print(table, "peaks: " + ", ".join(f"{name} {n / 1e6:.1f} MB" for name, n in peaks.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
