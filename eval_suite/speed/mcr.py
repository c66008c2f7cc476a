"""Cost of the modality contribution ratio over one plain forward, on a LLaVA with random weights.

    python -m eval_suite.speed.mcr --width 512 --layers 8 --batch 8

Three things are timed in turn, again and again, in one process; a ratio is the median over repetitions of the ratio of
neighbouring times, so that a machine that slows down slows all of them:

    forward      whole prompts to next-token logits, no gradient (the baseline)
    mcr          prefill and diagnosis, every row in one pass
    sequential   Algorithm 1 as printed: sample by sample, draw by draw, modality by modality, each with its own clone
    of the
                 cache, a forward of the query and a plain gradient of the whole cache; its prefill is one batch
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from eval_suite.conflict import build_prompt
from eval_suite.scenes.world import TASKS, SceneSpec, scene
from eval_suite.speed import timing
from factory.data.prompt import USER_TEXT, Role
from factory.diagnose import Diagnostic, Query, hold_back
from factory.model.encode import Batch
from factory.model.prefix import Prefix, at_last, extend, prefill
from factory.model.view import ModelView
from factory.registry import lookup


def plain_forward(view: ModelView, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        hidden, _ = prefill(view, batch)
        return view.logits(at_last(hidden, batch.attention_mask))


def sequential(view: ModelView, diagnostic: Diagnostic, batch: Batch, keys: Sequence[str], draws: int) -> float:
    """Algorithm 1 as printed; returns the summed squared gradient norms."""
    with torch.no_grad():
        hidden, whole = prefill(view, batch)
        prefix, query, _ = hold_back(view, batch.input_ids, hidden, whole, diagnostic.queried(whole, keys))
    images, texts = prefix.roles == Role.IMAGE, torch.isin(prefix.roles, torch.tensor(USER_TEXT, device=view.device))
    total = 0.0
    for s in range(prefix.rows):
        row = torch.tensor([s], device=view.device)
        one, x = prefix.fork(row), query.pick(row)
        with torch.no_grad():
            P_x = view.logits(extend(view, one.fork(), *x)[0][:, -1]).softmax(-1)
        for _ in range(draws):
            for tokens in (images[s], texts[s]):
                total += _one_gradient(view, one, x, P_x, tokens)
    return total


def _one_gradient(view: ModelView, prefix: Prefix, query: Query, P_x: torch.Tensor, tokens: torch.Tensor) -> float:
    z = prefix.fork()
    leaves = []
    for layer in z.cache.layers:
        for name in ("keys", "values"):
            kv = getattr(layer, name).clone()
            kv[:, :, tokens] += kv[:, :, tokens].std() * torch.randn_like(kv[:, :, tokens])
            leaves.append(kv.requires_grad_())
            setattr(layer, name, kv)
    with torch.enable_grad():
        loss = -(P_x * view.logits(extend(view, z, *query)[0][:, -1]).log_softmax(-1)).sum()
        grads = torch.autograd.grad(loss, leaves)
    return sum(float(g[:, :, tokens].square().sum()) for g in grads) / float(loss.detach())


def measure(
    view: ModelView,
    batch_size: int,
    draws: int = 3,
    repeats: int = 5,
    row_chunk: int | None = None,
    with_sequential: bool = True,
) -> dict:
    """Times in seconds (medians), ratios over the plain forward (medians of neighbouring pairs) and tokens per
    prompt.
    """
    prompts = [
        build_prompt(scene(SceneSpec(TASKS[i % len(TASKS)], "test", i, 0, i % 4)), "order1") for i in range(batch_size)
    ]
    batch, keys = view.encode(prompts), [str(i) for i in range(batch_size)]
    mcr = lookup("diagnostic", "mcr")
    diagnostic = mcr(mcr.Params(draws=draws, row_chunk=row_chunk))
    jobs: dict[str, Callable[[], object]] = {
        "forward": lambda: plain_forward(view, batch),
        "mcr": lambda: diagnostic.measure(view, batch, keys),
    }
    if with_sequential:
        jobs["sequential"] = lambda: sequential(view, diagnostic, batch, keys, draws)
    times = timing.interleaved(jobs, repeats, view.device)
    return {
        "batch": batch_size,
        "draws": draws,
        "tokens": batch.input_ids.shape[1],
        "image_tokens": int((batch.roles[0] == Role.IMAGE).sum()),
        "width": view.width,
        "layers": view.depth,
        "heads": view.heads,
        "kv_heads": view.kv_heads,
        "device": str(view.device),
        "threads": torch.get_num_threads(),
        "clock": timing.clock_name(view.device),
        "repeats": repeats,
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "over_forward": {
            name: statistics.median(a / b for a, b in zip(t, times["forward"], strict=True))
            for name, t in times.items()
        },
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def table(result: dict) -> str:
    head = (
        "MCR, N={draws}, two modalities; batch {batch}, {tokens} tokens ({image_tokens} image), width {width}, {layers}"
        " layers, {threads} thread(s), {device}, {clock} time"
    )
    lines = [head.format(**result), f"{'':12}{'seconds':>10}{'over forward':>15}"]
    lines += [
        f"{name:12}{result['seconds'][name]:10.3f}{result['over_forward'][name]:14.2f}x" for name in result["seconds"]
    ]
    return "\n".join(
        [
            *lines,
            (
                "baseline: forward = whole prompts to next-token logits, same batch; the paper reports 4.29x for N=3 on"
                " Qwen2.5-VL-3B"
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval_suite.speed.mcr", description=__doc__.partition("\n\n")[0])
    for name, default in {
        "width": 512,
        "layers": 8,
        "heads": 8,
        "kv-heads": 8,
        "image-tokens": 576,
        "batch": 8,
        "draws": 3,
        "repeats": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--row-chunk", type=int, default=None, help="most rows of one pass")
    parser.add_argument("--no-sequential", action="store_true", help="leave the slow procedure out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    a = parser.parse_args(arguments)
    view = timing.random_llava(a.width, a.layers, a.heads, a.kv_heads, a.image_tokens, a.device)
    result = measure(view, a.batch, a.draws, a.repeats, a.row_chunk, not a.no_sequential)
    print(table(result))
    if a.json:
        a.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
