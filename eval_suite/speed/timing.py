"""What the performance benchmarks share: models, prompts, interleaved timing, ratios that name their baseline, one
table.

The clock is the process's own processor time where one thread does all the work: on an idle machine that is wall time,
and on a busy one other programs do not count. With several threads, and on an accelerator, it is wall time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from eval_suite.conflict import build_prompt
from eval_suite.scenes.curriculum import Mix, lesson
from eval_suite.scenes.world import TASKS, SceneSpec, scene
from factory import files
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.model.families.llava import Llava
from factory.model.family import frozen
from factory.model.load import load
from factory.model.view import ModelView
from factory.plain import ending_in_one_line
from factory.recipe.schema import ModelSpec
from factory.run.environment import environment
from factory.run.timing import Clock
from factory.train.scratch.build import TinyLlava, build_llava, train_tokenizer

SIZES = {"width": 384, "layers": 8, "heads": 8, "kv-heads": 8, "image-tokens": 144}
Job = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Time of ``what`` over that of ``baseline``: the median of the ratios of neighbouring times, and their
    quartiles.
    """

    what: str
    baseline: str
    value: float
    low: float
    high: float
    target: float | None = None

    def __str__(self) -> str:
        return f"{self.what} / {self.baseline} {self.value:.3g}x"


@dataclass(frozen=True)
class Result:
    """One benchmark on one model: median seconds by job, the ratios between them, and what is done a second."""

    benchmark: str
    model: dict[str, Any]
    setting: dict[str, Any]
    seconds: dict[str, float]
    ratios: list[Ratio] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)


def scenes(n: int) -> list[ConflictSample]:
    """Scenes of all tasks."""
    return [scene(SceneSpec(TASKS[i % len(TASKS)], "test", i, 0, i % 4)) for i in range(n)]


def conflicts(n: int) -> list[Prompt]:
    """Their prompts, image first."""
    return [build_prompt(sample, "order1") for sample in scenes(n)]


def random_llava(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    image_tokens: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    positions: int | None = None,
) -> ModelView:
    """A frozen LLaVA with random weights and ``image_tokens`` (a square number) tokens an image; its prompts have at
    most ``positions`` tokens, by default 512 beside the image's.
    """
    side = round(image_tokens**0.5)
    if side * side != image_tokens:
        raise SystemExit(f"--image-tokens: {image_tokens} is not a square number; 576 is LLaVA-1.5's")
    sizes = TinyLlava(
        image_size=side * 8,
        patch_size=8,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        mlp=width * 11 // 4,
        positions=positions or image_tokens + 512,
    )
    tokenizer = train_tokenizer(
        ["\n".join(s.text for s in lesson(Random(i), 0.5, Mix()).segments) for i in range(200)], sizes.vocabulary
    )
    model, processor = build_llava(sizes, tokenizer, 0)
    return ModelView(frozen(model.to(device, dtype)), processor, Llava())


def interleaved(jobs: Mapping[str, Job], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each job in each of ``repeats`` rounds, after one that warms up.

    All jobs run in every round, every other round backwards, so that a machine that slows down slows all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name in list(jobs)[:: -1 if turn % 2 else 1]:
            with stopwatch(device) as clock:
                jobs[name]()
            if turn:
                times[name].append(clock.seconds)
    return times


class Stopwatch:
    seconds = float("nan")


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Stopwatch]:
    """``seconds`` of the block, the device's queue emptied on both ends."""
    clock, now = Stopwatch(), clock_of(device)
    _wait(device)
    start = now()
    yield clock
    _wait(device)
    clock.seconds = now() - start


def timed(job: Job, device: torch.device) -> Callable[[], float]:
    """``job``, which then returns the seconds that it took."""

    def run() -> float:
        with stopwatch(device) as clock:
            job()
        return clock.seconds

    return run


def clock_of(device: torch.device) -> Clock:
    return time.process_time if clock_name(device) == "processor" else time.perf_counter


def clock_name(device: torch.device) -> str:
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(times: Mapping[str, Sequence[float]], what: str, baseline: str, target: float | None = None) -> Ratio:
    return quartiles(what, baseline, [a / b for a, b in zip(times[what], times[baseline], strict=True)], target)


def quartiles(what: str, baseline: str, each: Sequence[float], target: float | None = None) -> Ratio:
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else [each[0]] * 3
    return Ratio(what, baseline, middle, low, high, target)


def result(
    benchmark: str, view: ModelView, setting: dict[str, Any], times: Mapping[str, Sequence[float]], ratios: list[Ratio]
) -> Result:
    model = {
        "name": f"{type(view.model).__name__} width {view.width}, {view.depth} layers",
        "device": str(view.device),
        "dtype": str(view.dtype).removeprefix("torch."),
        "clock": clock_name(view.device),
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in view.model.parameters()),
        "heads": view.heads,
        "kv_heads": view.kv_heads,
    }
    return Result(benchmark, model, setting, {name: statistics.median(t) for name, t in times.items()}, ratios)


def parser(module: str, doc: str) -> argparse.ArgumentParser:
    """A command line with the sizes of the random model and the options that all benchmarks have."""
    p = argparse.ArgumentParser(prog=f"python -m eval_suite.speed{module}", description=doc.partition("\n\n")[0])
    for name, default in SIZES.items():
        p.add_argument(
            f"--{name}",
            type=int,
            help=f"of the random LLaVA (default {default})" + "; a shape's own depth is cut to it" * (name == "layers"),
        )
    p.add_argument(
        "--models",
        choices=("random", "tiny", "both"),
        default="both",
        help="tiny is the shipped model, left out where its weights are missing",
    )
    p.add_argument(
        "--shape",
        metavar="CARD",
        nargs="+",
        help=(
            "instead: random weights of a zoo card's true sizes, such as llava-1.5-13b or qwen2.5-vl-7b, built on the"
            " device"
        ),
    )
    p.add_argument("--batch", type=int, help="prompts a batch")
    p.add_argument("--repeats", type=int, help="timed rounds")
    p.add_argument("--device", default="cpu")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the random weights (default float32; of a shape bfloat16)",
    )
    p.add_argument("--json", type=Path, help="write the figures to this file")
    return p


def models(a: argparse.Namespace) -> Iterator[ModelView]:
    """The views to measure, as the command line asks. Ends the program with one line for a shape that cannot be built
    here.
    """
    if a.shape:
        for name in a.shape:
            yield _shaped(name, a)
        return
    if a.models != "tiny":
        asked = {name.replace("-", "_"): default for name, default in SIZES.items()}
        sizes = {name: default if (size := getattr(a, name)) is None else size for name, default in asked.items()}
        yield random_llava(**sizes, device=a.device, dtype=getattr(torch, a.dtype or "float32"))
    if a.models != "random":
        try:
            view = load(ModelSpec(zoo="tiny", device=a.device))
        except UserError as missing:
            if a.models == "tiny":
                raise SystemExit(str(missing)) from missing
            print(f"shipped tiny model left out: {missing}", file=sys.stderr)
        else:
            yield view


def _shaped(name: str, a: argparse.Namespace) -> ModelView:
    from eval_suite.speed.shapes import shaped

    with ending_in_one_line():
        return shaped(name, a.device, a.dtype or "bfloat16", a.layers)


def options(a: argparse.Namespace) -> dict[str, Any]:
    """The measurement options that were given; a benchmark has its own defaults for the others."""
    return {name: value for name in ("batch", "repeats") if (value := getattr(a, name)) is not None}


def finish(results: Sequence[Result], to: Path | None, console: Console | None = None) -> None:
    """Print the table and, where asked, write the figures with the command, the machine and the libraries."""
    console = console or Console(width=max(Console().width, 140))
    results = list(results)
    for each in {(r.model["name"], r.model["device"], r.model["dtype"]): r for r in results}.values():
        console.print(_table([r for r in results if r.model["name"] == each.model["name"]], each.model))
    clock = results[0].model["clock"]
    console.print(
        f"{clock} time, {torch.get_num_threads()} thread(s); load average {os.getloadavg()[0]:.2f} over the last"
        " minute",
        highlight=False,
    )
    if to:
        command = shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])
        files.write_json(
            to,
            {
                "command": command,
                "environment": environment(),
                "load_average": os.getloadavg(),
                "results": [asdict(r) for r in results],
            },
        )


def _table(results: Sequence[Result], model: dict[str, Any]) -> Table:
    table = Table(
        "benchmark",
        "ratio",
        "over",
        "",
        "quartiles",
        "target",
        title=f"{model['name']}, {model['dtype']}, {model['device']}",
        title_justify="left",
    )
    for r in results:
        setting = ", ".join(f"{k} {v}" for k, v in r.setting.items())
        for i, x in enumerate(r.ratios):
            target = "" if x.target is None else f"{x.target:.2f}x {'met' if x.value <= x.target else 'missed'}"
            table.add_row(
                f"{r.benchmark}: {setting}" if i == 0 else "",
                x.what,
                x.baseline,
                f"{x.value:.3f}x",
                f"{x.low:.3f}-{x.high:.3f}",
                target,
            )
        for what, value in r.rates.items():
            table.add_row("", what, "a second", f"{value:.4g}", "", "")
        table.add_section()
    return table
