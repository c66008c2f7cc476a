"""What ``plan`` predicts against what a run then takes: prompt passes, time and peak memory of tensors, stage by stage.

    python -m eval_suite.speed.plan [RECIPE] [KEY=VALUE ...] [--limit N] [--json FILE]

It plans the recipe, runs it in a temporary folder, and runs it again with every tensor counted (which is slow, so that
this run's time does not count). The clock is the processor's where one thread works on the CPU: what other programs do
then matters less. On a GPU the peak is the allocator's, on the CPU that of all live tensors.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eval_suite.speed import timing
from factory import files
from factory.model.load import device_for
from factory.model.load import load as load_model
from factory.model.view import ModelView
from factory.plain import ending_in_one_line
from factory.recipe import Recipe, load, loads
from factory.run import pipeline
from factory.run.environment import environment
from factory.run.plan.estimate import estimate, memory
from factory.run.plan.plan import measure
from factory.run.rundir import RunDir

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
        held = {
            t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())
        }
        self.sizes, self.now = held, sum(held.values())
        self.peak = self.now

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
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
    peak: list[int] = []
    if view.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.append(torch.cuda.max_memory_allocated())
    else:
        live = LiveTensors(view.model)
        with live:
            yield peak
        peak.append(live.peak)


@contextmanager
def whole_prompts(view: ModelView, passes: dict[str, float], at: list[str]) -> Iterator[None]:
    """Adds to ``passes`` of the stage ``at``, in each decoder block, the rows of each call that begins prompts there
    (the block's cache is empty) over the number of blocks: a whole prompt through all blocks is one pass. A prompt's
    last token that is run again counts as the share of the prompt that it is.
    """

    def count(i: int) -> Callable[..., None]:
        def ran(module: nn.Module, args: tuple, kwargs: dict) -> None:
            cache, h = kwargs.get("past_key_values"), args[0] if args else kwargs["hidden_states"]
            past = 0 if cache is None or i >= len(cache.layers) else cache.get_seq_length(i)
            if past == 0:
                passes[at[-1]] += len(h) / view.depth
            elif getattr(view.decoder, view.family.layers_name) is not blocks:
                passes[at[-1]] += len(h) / view.depth * h.shape[1] / past

        return ran

    blocks = view.layers
    handles = [block.register_forward_pre_hook(count(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Measured:
    """Seconds and prompt passes of each stage of one run, and the peak of its memory in bytes where that was
    ``tracked``.
    """

    def __init__(self, recipe: Recipe, limit: int | None, clock: timing.Clock, tracked: bool = False) -> None:
        self.seconds, self.passes = defaultdict[str, float](float), defaultdict[str, float](float)
        self.peaks: dict[str, int] = {}
        self.clock, self.tracked = clock, tracked
        self.at, self.since = ["check"], clock()
        began = time.perf_counter()
        view = load_model(recipe.model)
        tell = RunDir.event

        def event(folder: RunDir, name: str, /, **facts: object) -> None:
            if name == "stage_started":
                self._enter(str(facts["stage"]))
            elif name == "stage_finished" and facts["stage"] != "check":
                self._enter("report")
            tell(folder, name, **facts)

        self.live = LiveTensors(view.model) if tracked and view.device.type != "cuda" else None
        with ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(patch.object(RunDir, "event", event))
            stack.enter_context(patch.object(pipeline, "load", lambda *_: view))
            stack.enter_context(whole_prompts(view, self.passes, self.at))
            stack.enter_context(redirect_stdout(StringIO()))
            if self.live:
                stack.enter_context(self.live)
            pipeline.run(recipe.model_copy(update={"run": recipe.run.model_copy(update={"root": home})}), limit)
        self._enter("end")
        self.wall = time.perf_counter() - began

    def _enter(self, stage: str) -> None:
        now = self.clock()
        self.seconds[self.at[-1]] += now - self.since
        if self.tracked:
            self.peaks[self.at[-1]] = max(self.peaks.get(self.at[-1], 0), self._peak())
        self.at[:], self.since = [stage], now

    def _peak(self) -> int:
        """The peak since it was last asked for."""
        if self.live is None:
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return peak
        peak, self.live.peak = self.live.peak, self.live.now
        return peak


def compare(recipe: Recipe, limit: int | None) -> dict[str, object]:
    """Predicted and measured figures of every stage."""
    device = device_for(recipe.model.device)
    clock = timing.clock_of(device)
    found = estimate(recipe, limit, clock)
    began = time.perf_counter()
    assert found.model is not None, "the sizes of a recipe that can be run are known"
    told = measure(recipe, found, limit, clock=clock)
    planning = time.perf_counter() - began
    run, again = Measured(recipe, limit, clock), Measured(recipe, limit, clock, tracked=True)
    seconds = {s.name: told.of(s) for s in found.stages}
    rows = [
        {
            "stage": s.name,
            "passes": [s.passes, run.passes[s.name]],
            "seconds": [seconds[s.name], run.seconds[s.name]],
            "peak": again.peaks.get(s.name),
        }
        for s in found.stages
    ]
    whole = {
        "passes": [found.passes, sum(run.passes.values())],
        "seconds": [sum(seconds.values()), sum(run.seconds.values())],
        "memory": [
            memory(recipe, found.model, (told.prompt_tokens, told.longest), found.data.prompts),
            max(again.peaks.values()),
        ],
    }
    return {
        "recipe": recipe.name,
        "limit": limit,
        "model": found.model.cls,
        "device": str(device),
        "clock": timing.clock_name(device),
        "planned_in": planning,
        "wall": run.wall,
        "stages": rows,
        **whole,
    }


def show(c: dict, console: Console) -> None:
    table = Table(
        "stage",
        "passes",
        "counted",
        f"{c['clock']} seconds",
        "measured",
        "predicted / measured",
        "peak of tensors",
        title=f"{c['recipe']}, limit {c['limit']}, {c['model']} on {c['device']}",
    )
    for r in [*c["stages"], {"stage": "all", **c, "peak": c["memory"][1]}]:
        (p, counted), (s, took) = r["passes"], r["seconds"]
        peak = f"{r['peak'] / 1e6:.1f} MB" if r["peak"] else ""
        table.add_row(
            r["stage"],
            *(f"{n:,.1f}" if n else "" for n in (p, counted)),
            f"{s:.2f}",
            f"{took:.2f}",
            f"{s / took:.2f}" if took else "",
            peak,
        )
    told, peak = c["memory"]
    console.print(table)
    console.print(
        f"memory: predicted {told / 1e6:.1f} MB, measured {peak / 1e6:.1f} MB, {told / peak:.2f}; planned in"
        f" {c['planned_in']:.1f} s, run in {c['wall']:.1f} s of wall time",
        highlight=False,
    )


@ending_in_one_line()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval_suite.speed.plan", description=__doc__.partition("\n\n")[0])
    parser.add_argument("recipe", nargs="?", help="default: a small Scenes recipe on the shipped tiny model")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    a = parser.parse_intermixed_args(arguments)
    given = [word for word in (a.recipe, *a.overrides) if word]
    recipe = load(Path(given[0]), given[1:]) if given and "=" not in given[0] else loads(RECIPE, overrides=given)
    found = compare(recipe, a.limit)
    show(found, Console(width=max(Console().width, 140)))
    if a.json:
        before = files.read_json(a.json)["results"] if a.json.exists() else []
        files.write_json(
            a.json, {"environment": environment(), "load_average": os.getloadavg(), "results": [*before, found]}
        )


if __name__ == "__main__":
    main(sys.argv[1:])
