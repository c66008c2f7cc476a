"""Both orders of a question's options run from what they have in common, over each run whole.

    python -m eval_suite.speed.orders --width 384 --layers 8

``ideal`` is the share of tokens that is left: of two prompts of T tokens with n in common (2 T - n) / 2 T. Both ways
must give the same states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval_suite.conflict import build_prompt
from eval_suite.speed import timing
from factory.model.alike import alike
from factory.model.view import ModelView
from factory.steer.sweep import Trunk, run_trunk, trunk_of_prompts

ORDERS = ("order1", "order2")


@torch.no_grad()
def measure(view: ModelView, batch: int = 8, repeats: int = 5) -> timing.Result:
    """Of ``batch`` prompts, two of each scene."""
    layer = view.depth // 2
    prompts = [build_prompt(scene, order) for scene in timing.scenes(max(1, batch // 2)) for order in ORDERS]

    def shared() -> Trunk:
        return trunk_of_prompts(view, prompts, layer)

    def whole() -> Trunk:
        return run_trunk(view, view.encode(prompts), layer)

    one, other, parted = shared(), whole(), alike(view, prompts)
    real = other.batch.attention_mask.bool()
    if parted is None or not torch.allclose(one.states[real], other.states[real], rtol=1e-3, atol=1e-3):
        raise RuntimeError("what both orders have in common does not give the states of whole prompts")
    times = timing.interleaved({"from what they share": shared, "whole prompts": whole}, repeats, view.device)
    left = parted.heads.attention_mask.sum() + parted.tails.attention_mask.sum()
    setting = {
        "prompts": len(prompts),
        "tokens": other.batch.input_ids.shape[1],
        "repeats": repeats,
        "ideal": f"{float(left / real.sum()):.2f}x",
    }
    ratios = [timing.ratio(times, "from what they share", "whole prompts", 1.0)]
    return timing.result("orders", view, setting, times, ratios)


def main(arguments: Sequence[str] | None = None) -> None:
    a = timing.parser(".orders", __doc__).parse_args(arguments)
    timing.finish([measure(view, **timing.options(a)) for view in timing.models(a)], a.json)


if __name__ == "__main__":
    main()
