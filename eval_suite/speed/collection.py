"""Cost of the whole AMPS collection (three states and MCR, N=3) over one plain forward, and over collecting as
published.

python -m eval_suite.speed.collection --width 384 --layers 8 --batch 8

one forward   the base prompts to next-token logits, tokenised and prepared anew, no gradient (the baseline)
collection    factory.steer.collect: one shared prefix, three suffixes, MCR on the cache
states        the same without the diagnosis
published     a forward of the whole prompt for each of [I,T], [I,T,P+], [I,T,P-], then MCR as Algorithm 1 prints it
"""

from __future__ import annotations

from collections.abc import Sequence

from eval_suite.speed import timing
from eval_suite.speed.mcr import plain_forward, sequential
from factory.model.view import ModelView
from factory.registry import lookup
from factory.steer.collect import ASKS, Plan, asked, collect

TARGET = 2.0


def measure(view: ModelView, batch: int = 8, draws: int = 3, repeats: int = 3, published: bool = True) -> timing.Result:
    prompts, keys = timing.conflicts(batch), [str(i) for i in range(batch)]
    plan = Plan(view.depth // 2)
    mcr = lookup("diagnostic", "mcr")
    diagnostic = mcr(mcr.Params(draws=draws))

    def as_published() -> None:
        for ask in ASKS:
            plain_forward(view, view.encode([asked(p, ask, plan.style) for p in prompts]))
        sequential(view, diagnostic, view.encode(prompts), keys, draws)

    jobs = {
        "one forward": lambda: plain_forward(view, view.encode(prompts)),
        "collection": lambda: collect(view, prompts, plan, diagnostic, keys),
        "states": lambda: collect(view, prompts, plan, None, keys),
    }
    if published:
        jobs["published"] = as_published
    times = timing.interleaved(jobs, repeats, view.device)
    target = TARGET if batch >= 8 else None
    ratios = [timing.ratio(times, "collection", "one forward", target), timing.ratio(times, "states", "one forward")]
    if published:
        ratios += [timing.ratio(times, "published", "one forward"), timing.ratio(times, "published", "collection")]
    setting = {"batch": batch, "tokens": view.encode(prompts).input_ids.shape[1], "draws": draws, "repeats": repeats}
    return timing.result("collection", view, setting, times, ratios)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser(".collection", __doc__)
    parser.add_argument("--no-published", action="store_true", help="leave the slow procedure out")
    a = parser.parse_args(arguments)
    timing.finish(
        [measure(view, **timing.options(a), published=not a.no_published) for view in timing.models(a)], a.json
    )


if __name__ == "__main__":
    main()
