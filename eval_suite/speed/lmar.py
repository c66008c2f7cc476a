"""Cost of LMAR over one plain forward, in time and in memory beside the forward's.

python -m eval_suite.speed.lmar --width 384 --layers 8 --batch 8

one forward   whole prompts to next-token logits, no gradient (the baseline)
lmar          the same, and the attention that the last token of each prompt pays at every layer
"""

from __future__ import annotations

from collections.abc import Sequence

from eval_suite.speed import timing
from eval_suite.speed.mcr import plain_forward
from factory.model.view import ModelView
from factory.registry import lookup

TARGET = 1.1


def measure(view: ModelView, batch: int = 8, repeats: int = 5) -> timing.Result:
    encoded, keys = view.encode(timing.conflicts(batch)), [str(i) for i in range(batch)]
    cls = lookup("diagnostic", "lmar")
    diagnostic = cls(cls.Params())
    jobs = {
        "one forward": lambda: plain_forward(view, encoded),
        "lmar": lambda: diagnostic.measure(view, encoded, keys),
    }
    times = timing.interleaved(jobs, repeats, view.device)
    setting = {"batch": batch, "tokens": encoded.input_ids.shape[1], "repeats": repeats}
    return timing.result("lmar", view, setting, times, [timing.ratio(times, "lmar", "one forward", TARGET)])


def main(arguments: Sequence[str] | None = None) -> None:
    a = timing.parser(".lmar", __doc__).parse_args(arguments)
    timing.finish([measure(view, **timing.options(a)) for view in timing.models(a)], a.json)


if __name__ == "__main__":
    main()
