"""Prompts a second, forward, collected and answered, and how near the forward comes to what the device can do.

    python -m eval_suite.speed.throughput --shape llava-1.5-13b --device cuda

Operations are counted as the forward runs (torch's counter: matrix products and attention, two operations a
multiplication), and set against the rate of one large matrix product in the same dtype on the same device, measured
beside it. For the GPUs that are known the vendor's own figure stands beside that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from eval_suite.speed import timing
from eval_suite.speed.generation import endless
from eval_suite.speed.mcr import plain_forward
from factory.model.prefix import at_last, greedy, prefill
from factory.model.view import ModelView
from factory.registry import lookup
from factory.steer.collect import Plan, collect

DENSE = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
}  # 16-bit operations a second, without sparsity: data sheets
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices that are multiplied


def measure(view: ModelView, batch: int = 8, tokens: int = 16, repeats: int = 5, draws: int = 3) -> timing.Result:
    prompts, keys = timing.conflicts(batch), [str(i) for i in range(batch)]
    inputs, plan = view.encode(prompts), Plan(view.depth // 2)
    mcr = lookup("diagnostic", "mcr")
    diagnostic = mcr(mcr.Params(draws=draws))
    side = SIDE.get(view.device.type, 4096)
    a, b = torch.randn(2, side, side, device=view.device).to(view.dtype)

    @torch.no_grad()
    def answer() -> None:
        hidden, prefix = prefill(view, inputs)
        greedy(view, prefix, view.logits(at_last(hidden, inputs.attention_mask)), tokens)

    with endless(view):
        jobs = {
            "one forward": lambda: plain_forward(view, inputs),
            "collection": lambda: collect(view, prompts, plan, diagnostic, keys),
            "answer": answer,
            "matrix product": lambda: a @ b,
        }
        times = timing.interleaved(jobs, repeats, view.device)
    with FlopCounterMode(display=False) as counted:
        plain_forward(view, inputs)
    done = counted.get_total_flops()
    attainable = [2 * side**3 / t for t in times["matrix product"]]
    shares = [done / t / rate for t, rate in zip(times["one forward"], attainable, strict=True)]
    ratios = [timing.quartiles("operations a second, forward", "matrix product", shares)]
    name = torch.cuda.get_device_name(view.device) if view.device.type == "cuda" else ""
    peak = next((rate for gpu, rate in DENSE.items() if gpu in name), None)
    if peak and view.dtype != torch.float32:
        ratios.append(
            timing.quartiles(
                "operations a second, forward", f"data sheet of {name}", [done / t / peak for t in times["one forward"]]
            )
        )
    setting = {"batch": batch, "tokens": inputs.input_ids.shape[1], "new": tokens, "draws": draws, "repeats": repeats}
    found = timing.result("throughput", view, setting, times, ratios)
    found.rates.update(
        {f"prompts, {job}": batch / found.seconds[job] for job in ("one forward", "collection", "answer")}
    )
    found.rates["operations, forward"] = done / found.seconds["one forward"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    a = timing.parser(".throughput", __doc__).parse_args(arguments)
    timing.finish([measure(view, **timing.options(a)) for view in timing.models(a)], a.json)


if __name__ == "__main__":
    main()
