"""Cost of a training step of each tuner over the frozen model's own, in time and in what is kept for the backward pass.

    python -m eval_suite.speed.tuning --width 384 --layers 8 --batch 8
    python -m eval_suite.speed.tuning --models random --width 4096 --layers 32 --heads 32 --kv-heads 32 --image-tokens
    576 --device cuda --dtype bfloat16   # a 7B

    frozen   forward and backward of the answer's loss through the frozen decoder into the connector, as in pretraining
    (the baseline)
    TUNER    the same with a tuner applied, so that its parameters get gradients too

Each model is a copy of one; optimiser steps are left out, the learning rate being 0. What is kept for the backward pass
is counted by the bytes of the distinct tensors that autograd saves, the model's weights not among them. With the peak
of the device (``--peak``, in 10^12 operations a second; known for some GPUs in bfloat16) each step's share of it is
told, from the operations that torch counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from eval_suite.speed import timing
from factory.data.prompt import Role, Segment
from factory.model.view import ModelView
from factory.registry import lookup
from factory.train.scratch.lessons import LessonCollator

TUNERS = {
    "mores": {},
    "lora": {"rank": 16},
    "ia3": {},
    "adapter": {"bottleneck": 64},
    "oft": {"blocks": 16},
    "full": {},
}
TARGETS = {"mores": 1.05}
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bfloat16, NVIDIA's data sheets


def measure(
    view: ModelView, batch: int = 8, repeats: int = 5, tuners: Sequence[str] = tuple(TUNERS), peak: float | None = None
) -> timing.Result:
    inputs = lesson(view, batch)
    steps = {"frozen": step_of(view, None, inputs), **{name: step_of(view, name, inputs) for name in tuners}}
    kept = {name: kept_bytes(step) for name, step in steps.items()}
    times = timing.interleaved(steps, repeats, view.device)
    ratios = [timing.ratio(times, name, "frozen", TARGETS.get(name)) for name in tuners]
    ratios += [
        timing.Ratio(f"{name}: kept for backward", "frozen", *[kept[name] / kept["frozen"]] * 3) for name in tuners
    ]
    if peak := peak or known_peak(view.device, view.dtype):
        ratios += [_share(name, operations(step), times[name], peak * 1e12) for name, step in steps.items()]
    setting = {
        "batch": batch,
        "tokens": inputs["input_ids"].shape[1],
        "repeats": repeats,
        "frozen_kept_mib": round(kept["frozen"] / 2**20, 1),
    }
    return timing.result("tuning", view, setting, times, ratios)


def lesson(view: ModelView, batch: int) -> dict[str, Tensor]:
    """What a training step is given: conflicts with an answer that is learnt."""
    prompts = [prompt.append(Segment(Role.ANSWER, "red")) for prompt in timing.conflicts(batch)]
    return {key: value for key, value in LessonCollator(view)(prompts).items() if key != "text_labels"}


class Step:
    """Forward and backward of ``model``; ``weights`` are where its parameters lie."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
        self.model, self.inputs = model, inputs
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.model(**self.inputs, use_cache=False).loss.backward()


def step_of(
    view: ModelView, tuner: str | None, inputs: dict[str, Tensor], params: Mapping[str, Any] | None = None
) -> Step:
    """A step of a copy of the model that trains its connector and, where one is named, a tuner (with ``params``)."""
    mine = ModelView(copy.deepcopy(view.model).train(), view.processor, view.family)
    if tuner is None:
        mine.model.requires_grad_(False)
        mine.connector.requires_grad_(True)
    else:
        cls = lookup("tuner", tuner)
        cls(cls.Params(**TUNERS[tuner] if params is None else params)).apply(mine, ("connector",))
    return Step(mine.model, inputs)


def kept_bytes(step: Step) -> int:
    """Bytes that a step keeps for its backward pass."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in step.weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def operations(step: Callable[[], None]) -> int:
    """Floating-point operations of a step's matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second, in 10^12, of a GPU that is known; None for others and for other precisions."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    return next((peak for name, peak in PEAKS.items() if name in torch.cuda.get_device_name(device)), None)


def _share(name: str, done: int, seconds: Sequence[float], peak: float) -> timing.Ratio:
    """How much of the device's peak a step reaches."""
    each = sorted(done / s / peak for s in seconds)
    return timing.Ratio(f"{name}: operations a second", "the device's peak", median(each), each[0], each[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser(".tuning", __doc__)
    parser.add_argument(
        "--peak",
        type=float,
        metavar="TFLOPS",
        help="the device's peak in the model's precision, in 10^12 operations a second",
    )
    parser.add_argument("--tuners", nargs="+", choices=TUNERS, default=list(TUNERS), help="some of them")
    a = parser.parse_args(arguments)
    timing.finish(
        [measure(view, **timing.options(a), tuners=a.tuners, peak=a.peak) for view in timing.models(a)], a.json
    )


if __name__ == "__main__":
    main()
