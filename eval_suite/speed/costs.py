"""Seconds and peak memory a sample of what two papers time, with their numbers beside: AMPS, tables 5 and 6; LLaVA
Steering, A.7.

    python -m eval_suite.speed.costs --models random                     # the procedure, at a small size
    python -m eval_suite.speed.costs --shape qwen2.5-vl-3b --device cuda # AMPS's model: true sizes, random weights

    forward              a prompt to its next-token logits (the papers' "standard forward")
    mcr N=K              prefill and diagnosis with K draws
    generate             an answer of ``--new`` tokens, none of which ends it
    generate with NAME   the same, steered by AMPS at one layer, or by a tuner that is not merged into the weights

All run in turn, again and again; ``x`` and ``extra seconds`` are medians over neighbouring times, beside the forward
pass or the plain answer. Peak memory is the device's, the weights included, and known on a GPU alone.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from eval_suite.speed import timing
from eval_suite.speed.generation import endless, fitted, generate
from eval_suite.speed.mcr import plain_forward
from factory import files as disk
from factory.model.view import ModelView
from factory.registry import lookup

TUNERS: dict[str, dict[str, Any]] = {"mores": {}, "adapter": {"bottleneck": 256}, "oft": {}}
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """What one job takes, for one sample; ``times`` and the extras are beside ``baseline``."""

    what: str
    baseline: str
    seconds: float
    times: float
    extra_seconds: float
    peak_mib: float | None
    extra_mib: float | None


def published() -> list[dict[str, str]]:
    """Every published cost: paper, table, model (a card's name, empty where it is not said), what, metric, value."""
    text = files("eval_suite.published").joinpath("costs.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@torch.no_grad()
def measure(
    view: ModelView,
    batch: int = 1,
    repeats: int = 9,
    new: int = 16,
    draws: Sequence[int] = (1, 3),
    tuners: Sequence[str] = tuple(TUNERS),
) -> list[Cost]:
    """The cost of a sample in batches of ``batch``: diagnosis, steering, then each tuner beside the plain model."""
    inputs, keys = view.encode(timing.conflicts(batch)), [str(i) for i in range(batch)]
    mcr = lookup("diagnostic", "mcr")
    of_prompt: dict[str, timing.Job] = {"forward": lambda: plain_forward(view, inputs)}
    for n in draws:
        diagnostic = mcr(mcr.Params(draws=n))
        of_prompt[f"mcr N={n}"] = partial(diagnostic.measure, view, inputs, keys)
    costs = of_jobs(of_prompt, "forward", batch, repeats, view.device)
    with endless(view):
        amps = fitted(view, "amps", [min(14, view.depth // 2)], 1.0)
        answers = {
            "generate": lambda: generate(view, inputs, [], new),
            "generate with amps": lambda: generate(view, inputs, amps, new),
        }
        costs += of_jobs(answers, "generate", batch, repeats, view.device)
        for name in tuners:
            tuned = _tuned(view, name)
            with endless(tuned):
                pair: dict[str, timing.Job] = {
                    "generate": answers["generate"],
                    f"generate with {name}": partial(generate, tuned, inputs, [], new),
                }
                costs += of_jobs(pair, "generate", batch, repeats, view.device, besides=tuned)[1:]
            del tuned, pair
    return costs


def _tuned(view: ModelView, name: str) -> ModelView:
    """A copy of the model with an untrained tuner in its blocks."""
    mine = ModelView(copy.deepcopy(view.model), view.processor, view.family)
    cls = lookup("tuner", name)
    cls(cls.Params(**TUNERS[name])).apply(mine, ())
    mine.model.eval()
    return mine


def of_jobs(
    jobs: Mapping[str, timing.Job],
    baseline: str,
    batch: int,
    repeats: int,
    device: torch.device,
    besides: ModelView | None = None,
) -> list[Cost]:
    """The cost of each job; memory is left out where a second model lies ``besides`` the first."""
    times = timing.interleaved(jobs, repeats, device)
    peaks = {name: None if besides else peak_mib(job, device) for name, job in jobs.items()}
    found = []
    for name, seconds in times.items():
        pairs = list(zip(seconds, times[baseline], strict=True))
        extra = None if (own := peaks[name]) is None or (base := peaks[baseline]) is None else own - base
        found.append(
            Cost(
                name,
                baseline,
                median(seconds) / batch,
                median(a / b for a, b in pairs),
                median(a - b for a, b in pairs) / batch,
                own,
                extra,
            )
        )
    return found


def peak_mib(job: Callable[[], object], device: torch.device) -> float | None:
    """Most MiB that tensors took while ``job`` ran, those that were there before included; None but on a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    job()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / MIB


def table(costs: Sequence[Cost], title: str) -> Table:
    """Measured costs, and under each what a paper prints of the same, whatever the model and the device."""
    shown = Table("what", "seconds", "x", "extra seconds", "MiB", "extra MiB", title=title, title_justify="left")
    printed = published()
    for c in costs:
        memory = ["" if value is None else f"{value:,.0f}" for value in (c.peak_mib, c.extra_mib)]
        shown.add_row(c.what, f"{c.seconds:.4f}", f"{c.times:.2f}", f"{c.extra_seconds:+.4f}", *memory)
        for source in dict.fromkeys((row["paper"], row["table"], row["model"]) for row in printed):
            cells = _printed(printed, source, c)
            if any(cells):
                shown.add_row(f"  {' '.join(filter(None, source))}", *cells, style="dim")
    return shown


def _printed(rows: Sequence[dict[str, str]], source: tuple[str, str, str], cost: Cost) -> list[str]:
    own = {
        (row["what"], row["metric"]): float(row["value"])
        for row in rows
        if (row["paper"], row["table"], row["model"]) == source
    }

    def beside(metric: str, how: Callable[[float, float], float]) -> float | None:
        here, there = own.get((cost.what, metric)), own.get((cost.baseline, metric))
        return None if here is None or there is None else how(here, there)

    minus, over = (lambda a, b: a - b), (lambda a, b: a / b)
    extra = own.get((cost.what, "extra_seconds"), beside("seconds", minus))
    cells = (
        (own.get((cost.what, "seconds")), ".2f"),
        (beside("seconds", over), ".2f"),
        (extra, "+.2f"),
        (own.get((cost.what, "peak_mib")), ",.0f"),
        (beside("peak_mib", minus), ",.0f"),
    )
    return ["" if value is None else format(value, how) for value, how in cells]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser(".costs", __doc__)
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer (default 16)")
    parser.add_argument("--tuners", nargs="*", choices=TUNERS, default=list(TUNERS), help="some of them, or none")
    a = parser.parse_args(arguments)
    console, found = Console(width=max(Console().width, 120)), []
    for view in timing.models(a):
        costs = measure(view, **timing.options(a), new=a.new, tuners=a.tuners)
        about = timing.result("costs", view, {"new": a.new, **timing.options(a)}, {}, [])
        found.append({**asdict(about), "costs": [asdict(cost) for cost in costs]})
        device = torch.cuda.get_device_name(view.device) if view.device.type == "cuda" else str(view.device)
        console.print(table(costs, f"{about.model['name']}, {about.model['dtype']}, {device}; a sample"))
    console.print("Dim: as printed, on the paper's own model, device and answer length.", highlight=False)
    if a.json:
        disk.write_json(a.json, found)


if __name__ == "__main__":
    main()
