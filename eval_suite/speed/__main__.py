"""All performance benchmarks, and one table of their ratios.

    python -m eval_suite.speed [--models random] [--json eval_suite/speed/results/NAME.json]

On a GPU, at the true sizes of two of the AMPS paper's models, with random weights in bfloat16 (nothing is downloaded):

    python -m eval_suite.speed --shape llava-1.5-13b qwen2.5-vl-7b --device cuda --only throughput mcr collection
    generation --json eval_suite/speed/results/gpu.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eval_suite.speed import (
    anchor,
    collection,
    controllers,
    generation,
    lmar,
    mcr,
    orders,
    sweep,
    throughput,
    timing,
    tuning,
)
from factory.model.view import ModelView

MCR_TARGETS = {True: 1.5, False: 2.0}  # at batch 8 or more, and below


def measure_mcr(view: ModelView, batch: int = 8, repeats: int = 3) -> timing.Result:
    """``eval_suite.speed.mcr`` in the common form."""
    m = mcr.measure(view, batch, repeats=repeats)
    ratios = [
        timing.Ratio(
            "MCR" if name == "mcr" else "MCR as printed",
            "one forward",
            m["over_forward"][name],
            m["over_forward"][name],
            m["over_forward"][name],
            target,
        )
        for name, target in (("mcr", MCR_TARGETS[batch >= 8]), ("sequential", None))
    ]
    times = {name: [seconds] for name, seconds in m["seconds"].items()}
    return timing.result(
        "mcr", view, {"batch": batch, "tokens": m["tokens"], "draws": m["draws"], "repeats": repeats}, times, ratios
    )


BENCHMARKS: dict[str, Callable[..., timing.Result]] = {
    "mcr": measure_mcr,
    "collection": collection.measure,
    "generation": generation.measure,
    "controllers": controllers.measure,
    "sweep": sweep.measure,
    "orders": orders.measure,
    "lmar": lmar.measure,
    "anchor": anchor.measure,
    "tuning": tuning.measure,
    "throughput": throughput.measure,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser("", __doc__)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="some of them")
    a = parser.parse_args(arguments)
    timing.finish([BENCHMARKS[name](view, **timing.options(a)) for view in timing.models(a) for name in a.only], a.json)


if __name__ == "__main__":
    main()
