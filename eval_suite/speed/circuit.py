"""ACDC with a reader's candidates as rows of one forward, over the loop that runs the whole model for each edge.

    python -m eval_suite.speed.circuit --repeats 5

Both are the diagnostic's own, on the same prompts one after the other in each round; both must decide every edge alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval_suite.benchmarks.scenes import Scenes
from eval_suite.speed import timing
from factory.bench import Bench
from factory.model.view import ModelView
from factory.registry import lookup

TARGET = 0.25


def measure(view: ModelView, batch: int = 2, repeats: int = 3, tau: float = 0.01) -> timing.Result:
    cls = lookup("diagnostic", "circuit")
    once = {"methods": ["acdc"], "taus": [tau], "tau": tau, "loop": True, "timed": True, "draws": 1, "shares": [1.0]}
    diagnostic = cls(cls.Params.model_validate({"items": batch, "held_out": 1, **once}))
    per_task = {"train": batch + 1, "dev": 1, "test": 1}
    scenes = Scenes(Scenes.Params.model_validate({"scoring": "open_ended", "per_task": per_task}))
    bench, samples = Bench(view, scenes, batch, 1), scenes.samples("train")
    times: dict[str, list[float]] = {"acdc": [], "acdc_loop": []}
    blocks: dict[str, float] = {}
    for _ in range(repeats):
        rows = diagnostic.on_samples(bench, samples)
        if not all(r["value"] for r in rows if r["metric"] == "loop_decides_alike"):
            raise RuntimeError("rows decide some edge otherwise than one at a time")
        for name, taken in times.items():
            found = {r["metric"]: r["value"] for r in rows if r.get("method") == name}
            taken.append(found["seconds"])
            blocks[name] = found["blocks"]
    run = f"{blocks['acdc']:,.0f} of {blocks['acdc_loop']:,.0f}"
    setting = {"batch": batch, "tau": tau, "repeats": repeats, "blocks": run}
    return timing.result("circuit", view, setting, times, [timing.ratio(times, "acdc", "acdc_loop", TARGET)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser(".circuit", __doc__)
    parser.set_defaults(models="tiny")
    a = parser.parse_args(arguments)
    timing.finish([measure(view, **timing.options(a)) for view in timing.models(a)], a.json)


if __name__ == "__main__":
    main()
