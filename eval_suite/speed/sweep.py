"""A strength sweep of S strengths on one shared trunk, over S separate steered runs.

    python -m eval_suite.speed.sweep --width 384 --layers 8 --strengths 7

``ideal`` is (1 + S (L - l - 1) / L) / S for a model of L blocks steered at block l: what remains when the blocks up to
the steered one run once and decoding costs nothing. Both ways must give the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eval_suite.speed import timing
from eval_suite.speed.generation import endless, fitted
from factory.model.encode import Batch
from factory.model.prefix import at_last, greedy, prefill
from factory.model.view import ModelView
from factory.steer import Steering, steer
from factory.steer.sweep import run_cell, run_trunk


def shared(view: ModelView, batch: Batch, steerings: Sequence[Steering], n: int) -> list[Tensor]:
    trunk = run_trunk(view, batch, steerings[0].layer)
    return [run_cell(view, trunk, s, n) for s in steerings]


@torch.no_grad()
def separate(view: ModelView, batch: Batch, steerings: Sequence[Steering], n: int) -> list[Tensor]:
    answers = []
    for s in steerings:
        with steer(view, s):
            hidden, prefix = prefill(view, batch)
            answers.append(greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), n))
    return answers


def measure(
    view: ModelView, batch: int = 4, strengths: int = 7, tokens: int = 4, repeats: int = 3, method: str = "l2s"
) -> timing.Result:
    layer = view.depth // 2
    with endless(view):
        inputs = view.encode(timing.conflicts(batch))
        steerings = [fitted(view, method, [layer], (i + 1) / 2)[0] for i in range(strengths)]
        for one, other in zip(
            shared(view, inputs, steerings, tokens), separate(view, inputs, steerings, tokens), strict=True
        ):
            if not torch.equal(one, other):
                raise RuntimeError("the shared trunk does not give the answers of separate runs")
        jobs = {
            name: lambda f=f: f(view, inputs, steerings, tokens)
            for name, f in (("shared trunk", shared), ("separate runs", separate))
        }
        times = timing.interleaved(jobs, repeats, view.device)
    ideal = (1 + strengths * (view.depth - layer - 1) / view.depth) / strengths
    setting = {
        "strengths": strengths,
        "layer": f"{layer} of {view.depth}",
        "batch": batch,
        "new": tokens,
        "repeats": repeats,
        "ideal": f"{ideal:.2f}x",
    }
    return timing.result("sweep", view, setting, times, [timing.ratio(times, "shared trunk", "separate runs", 1.0)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser(".sweep", __doc__)
    parser.add_argument("--strengths", type=int, default=7, help="default 7")
    a = parser.parse_args(arguments)
    timing.finish([measure(view, **timing.options(a), strengths=a.strengths) for view in timing.models(a)], a.json)


if __name__ == "__main__":
    main()
