"""How time and memory grow: with samples, prompt length, image tokens, strengths and ranks.

    python -m eval_suite.speed.growth [--only samples tokens] [--json FILE] [--markdown FILE]

Each job runs at three or four sizes, in turn, on models so small that many sizes fit. Its exponent is the slope of the
logarithm of its cost over that of the size: 1 is linear, below 1 a part does not grow. Where attention grows with the
size, the exponent of the plain forward pass stands beside, and what counts is how much faster a job grows than that.
The time's interval is the bootstrap's over the rounds; memory is counted once, the model's weights not among it.
"""

from __future__ import annotations

import argparse
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eval_suite.speed import sweep, tables, timing, tuning
from eval_suite.speed.generation import endless, fitted, steered
from eval_suite.speed.mcr import plain_forward
from eval_suite.speed.peers.pairs import in_turn
from eval_suite.speed.plan import LiveTensors
from eval_suite.speed.tables import FORWARD, Growth
from eval_suite.speed.timing import random_llava, timed
from factory import files
from factory.corpus.source import ConversationFile
from factory.data.prompt import Prompt, Role, Segment
from factory.model.prefix import prefill
from factory.model.view import ModelView
from factory.registry import lookup
from factory.run.methods.choose import choose
from factory.run.questions.responses import Responses
from factory.run.rundir import RunDir
from factory.statistics.intervals import bootstrap_mean, paired_difference
from factory.steer.collect import Plan, collect
from factory.steer.regressor import RegressorParams, fit_g

CPU = torch.device("cpu")
Jobs = dict[str, timing.Job]
Sizes = dict[int, Jobs]


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent: least squares through the logarithms."""
    x, y = np.log(sizes) - np.mean(np.log(sizes)), np.log(np.maximum(costs, 1e-9))
    return float((x * y).sum() / (x * x).sum())


def grown(axis: str, jobs: Sizes, rounds: int, peak: Callable[[timing.Job, int], int]) -> list[Growth]:
    """All jobs of ``jobs`` {size: {name: job}}, every size of every job once a round."""
    runs = {(name, size): timed(job, CPU) for size, each in jobs.items() for name, job in each.items()}
    named = {f"{name} {size}": run for (name, size), run in runs.items()}
    seconds, sizes = in_turn(named, rounds), list(jobs)
    slopes, found = {}, []
    for name in next(iter(jobs.values())):
        of_size = [seconds[f"{name} {size}"] for size in sizes]
        slopes[name] = [slope(sizes, costs) for costs in zip(*of_size, strict=True)]
        memory = [peak(jobs[size][name], size) for size in sizes]
        beyond = None
        if FORWARD in slopes:
            apart = [a - b for a, b in zip(slopes[name], slopes[FORWARD], strict=True)]
            beyond = (float(np.mean(apart)), *bootstrap_mean(apart))
        low, high = bootstrap_mean(slopes[name])
        middle = [float(np.median(times)) for times in of_size]
        exponent = float(np.mean(slopes[name]))
        found.append(Growth(name, axis, sizes, middle, memory, exponent, low, high, slope(sizes, memory), beyond))
    return found


def of_python(job: timing.Job) -> int:
    """Peak bytes of what Python and NumPy allocate."""
    tracemalloc.start()
    job()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def of_tensors(model: nn.Module, job: timing.Job) -> int:
    """Peak bytes of tensors beside the model's own."""
    live = LiveTensors(model)
    own = live.now
    with live:
        job()
    return max(live.peak - own, 1)


# Samples: what a run does beside the model


def samples(sizes: Sequence[int], rounds: int) -> list[Growth]:
    with tempfile.TemporaryDirectory() as scratch:
        jobs = {n: _bookkeeping(n, Path(scratch)) for n in sizes}
        return grown("samples", jobs, rounds, lambda job, _: of_python(job))


def _bookkeeping(n: int, scratch: Path) -> Jobs:
    rng = np.random.default_rng(n)
    outcomes = rng.choice(["follow", "compete", "error"], (3, n))
    told = [
        {"sample": f"s{i}", "task": f"t{i % 8}", "method": method, "direction": "vision", "variant": "", "strength": s}
        | {"outcome": str(outcomes[at, i])}
        for at, (method, s) in enumerate([("none", 0.0), ("l2s", 1.0), ("l2s", 2.0)])
        for i in range(n)
    ]
    states = torch.from_numpy(rng.normal(size=(2, n, 64))).float()
    data = scratch / f"{n}.jsonl"
    files.write_jsonl(data, [_conversation(i) for i in range(n)])
    return {
        "network's fit, 2 epochs": lambda: fit_g(states[0], states[1], RegressorParams(epochs=2), 0),
        "choice of a strength": lambda: choose(told, 0.05, "none"),
        "paired bootstrap": lambda: paired_difference(told[:n], told[n : 2 * n]),
        "answers kept and read": lambda: _kept(n, scratch),
        "chunks of a stage": lambda: _chunks(n, scratch),
        "training data's audit and index": lambda: _indexed(data),
    }


def _conversation(i: int) -> dict[str, object]:
    said = [{"from": "human", "value": f"What is {i} and {i}?"}, {"from": "gpt", "value": f"It is {2 * i}."}]
    return {"id": f"c{i}", "conversations": said}


def _kept(n: int, scratch: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch) as root:
        known = Responses(Path(root), {"n": n})
        for i in range(n):
            known.put(f"prompt {i}", f"answer {i}")
        assert len(Responses(Path(root), {"n": n}).known) == n


def _chunks(n: int, scratch: Path, size: int = 16) -> None:
    """A stage's results batch by batch, as predictions are kept."""
    work = {f"{i:06d}": lambda i=i: [{"sample": j} for j in range(i, i + size)] for i in range(0, n, size)}
    with (
        tempfile.TemporaryDirectory(dir=scratch) as root,
        RunDir.open(Path(root), "run", Path("recipe.yaml"), "name: run\n", {"name": "run"}) as run,
    ):
        run.stage("answers", {"n": n}).gather(work)


def _indexed(data: Path) -> None:
    with tempfile.TemporaryDirectory(dir=data.parent) as cache:
        ConversationFile(data, data.parent, Path(cache))


# Prompt length and image tokens: what the model does


def tokens(sizes: Sequence[int], rounds: int) -> list[Growth]:
    view = random_llava(32, 2, 4, 2, 16, positions=max(sizes) + 64)
    jobs = {n: _of_prompts(view, [long_prompt(view, n)]) for n in sizes}
    return grown("tokens of a prompt", jobs, rounds, lambda job, _: of_tensors(view.model, job))


def long_prompt(view: ModelView, n: int) -> Prompt:
    """A conflict's prompt whose context fills it up to about ``n`` tokens."""
    prompt = timing.conflicts(1)[0]
    word = " and so it was told"
    missing = n - view.encode([prompt]).input_ids.shape[1]
    each = len(view.tokenizer(word, add_special_tokens=False).input_ids)
    return prompt.before_question(Segment(Role.CONTEXT, word * max(missing // each, 1)))


def image_tokens(sizes: Sequence[int], rounds: int) -> list[Growth]:
    views = {n: random_llava(32, 2, 4, 2, n) for n in sizes}
    jobs = {n: _of_prompts(view, timing.conflicts(2)) for n, view in views.items()}
    return grown("image tokens", jobs, rounds, lambda job, n: of_tensors(views[n].model, job))


def _of_prompts(view: ModelView, prompts: Sequence[Prompt]) -> Jobs:
    batch, keys = view.encode(prompts), [str(i) for i in range(len(prompts))]
    mcr, lmar = (lookup("diagnostic", name) for name in ("mcr", "lmar"))
    contribution, looks = mcr(mcr.Params()), lmar(lmar.Params())
    added = fitted(view, "l2s", [view.depth // 2], 0.5)

    @torch.no_grad()
    def with_steering() -> None:
        with steered(view, added, begins=True):
            prefill(view, batch)

    return {
        FORWARD: lambda: plain_forward(view, batch),
        "steered prefill": with_steering,
        "LMAR": lambda: looks.measure(view, batch, keys),
        "MCR": lambda: contribution.measure(view, batch, keys),
        "collection with MCR": lambda: collect(view, prompts, Plan(view.depth // 2), contribution, keys),
    }


# Strengths and ranks


def strengths(sizes: Sequence[int], rounds: int) -> list[Growth]:
    view = random_llava(64, 4, 4, 2, 16)
    with endless(view):
        inputs = view.encode(timing.conflicts(2))
        steerings = [fitted(view, "l2s", [2], (i + 1) / 8)[0] for i in range(max(sizes))]
        jobs: Sizes = {n: {"strength sweep": partial(sweep.shared, view, inputs, steerings[:n], 2)} for n in sizes}
        return grown("strengths", jobs, rounds, lambda job, _: of_tensors(view.model, job))


def ranks(sizes: Sequence[int], rounds: int) -> list[Growth]:
    view = random_llava(128, 2, 4, 2, 16)
    inputs = tuning.lesson(view, 2)
    steps = {n: {name: tuning.step_of(view, name, inputs, {"rank": n}) for name in ("lora", "mores")} for n in sizes}
    jobs: Sizes = {n: {f"{name} step": step for name, step in each.items()} for n, each in steps.items()}
    models = {id(step): step.model for each in steps.values() for step in each.values()}
    return grown("rank", jobs, rounds, lambda job, _: of_tensors(models[id(job)], job))


AXES: dict[str, tuple[Callable[[Sequence[int], int], list[Growth]], tuple[int, ...]]] = {
    "samples": (samples, (1250, 5000, 20000)),
    "tokens": (tokens, (1000, 2000, 4000, 8000)),
    "image-tokens": (image_tokens, (64, 256, 1024)),
    "strengths": (strengths, (2, 4, 8, 16)),
    "ranks": (ranks, (4, 16, 64)),
}


def measure(axes: Sequence[str], rounds: int, sizes: Mapping[str, Sequence[int]] | None = None) -> Iterator[Growth]:
    for axis in axes:
        way, usual = AXES[axis]
        yield from way((sizes or {}).get(axis, usual), rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval_suite.speed.growth", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES), help="some of the axes")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    tables.outputs(parser)
    a = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tables.tell(a, growths=list(measure(a.only, a.rounds)))


if __name__ == "__main__":
    main()
