"""Does the law explain the steering? How well what diagnostics offer as predictors tells which samples flip and which
break.

Test samples (the share of them that was asked at every strength), all strengths of a swept method in one direction. A
sample that the unsteered model does not answer the wanted way flips at the least strength that makes it follow; one
that it answers without error breaks at the least strength that ends in an error. For each predictor: its rank
correlation with that strength (never: above all others) and the AUROC with which it tells samples that do so at any
strength from those that never do. Below 0.5 a low value means yes. Intervals are 95 % bootstrap intervals; those of a
mean over methods draw test samples once for all methods, which were asked the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eval_suite.report.rows import is_oracle, target
from factory.diagnose.summary import Figure, Finding, Predictor, Summary, Table
from factory.run.labels import CURVE
from factory.statistics.association import Interval, auroc, bootstrap, interval, spearman

DRAWS = 300
FEWEST = 5  # samples that do, and samples that do not, below which nothing is said
EVENTS = {"flips": ("compete", "flags", "other", "error"), "breaks": ("follow", "compete", "flags", "other")}
MEANT = {"flips": "follow", "breaks": "error"}
Key = tuple[str, str]
"""Event and predictor."""
Cell = Mapping[str, tuple[float, bool]]
"""Of one method toward one direction: each sample's predictor and whether the event happens to it."""
Mean = tuple[float, Interval | None]
COLUMNS = (
    "toward",
    "method",
    "event",
    "predictor",
    "n",
    "events",
    "rank correlation",
    "rank correlation low",
    "rank correlation high",
    "AUROC",
    "AUROC low",
    "AUROC high",
)


def explain(
    diagnostics: Sequence[Mapping], predictions: Sequence[Mapping], unsteered: str, predictors: Iterable[Predictor]
) -> list[Summary]:
    """One summary where both a predictor and a swept method were measured on test samples, else none; ``unsteered`` is
    the label of the model as it is.
    """
    offered = {predictor.metric: predictor for predictor in predictors}
    known = measured(diagnostics, offered)
    split = CURVE if any(p["split"] == CURVE for p in predictions) else "test"
    rows, cells = [], defaultdict(list)
    for direction, method, runs in _swept(predictions, split):
        base = {
            p["sample"]: p["outcome"]
            for p in predictions
            if p["method"] == unsteered and p["direction"] == direction and p["split"] == split
        }
        for event in EVENTS:
            at = first_strengths(runs, base, event)
            for metric, values in known.items():
                name = offered[metric].name
                toward = {s: offered[metric].toward(v, direction) for s, v in values.items() if s in at}
                if line := _line(list(toward.values()), [at[s] for s in toward]):
                    rows.append((target(direction), method, event, name, *line))
                    cells[event, name].append(
                        dict(
                            zip(
                                toward,
                                zip(toward.values(), (np.isfinite(at[s]) for s in toward), strict=True),
                                strict=True,
                            )
                        )
                    )
    if not rows:
        return []
    table = Table("explained", "What tells a sample that flips, or breaks", COLUMNS, tuple(rows))
    means = {key: mean_auroc(some) for key, some in cells.items()}
    return [
        Summary("Does the law explain the steering?", tuple(_findings(cells, means)), (table,), (_figure(rows, means),))
    ]


def measured(
    diagnostics: Sequence[Mapping], metrics: Iterable[str], split: str | None = "test"
) -> dict[str, dict[str, float]]:
    """By metric the value of each of a split's samples, averaged over its forms, measured on the prompt without
    instruction.
    """
    found: dict[str, dict[str, list[float]]] = {metric: defaultdict(list) for metric in metrics}
    for r in diagnostics:
        value = r.get("value")
        if (
            r.get("metric") in found
            and r.get("split") == split
            and r.get("prompt", "base") == "base"
            and value is not None
            and np.isfinite(value)
        ):
            found[r["metric"]][r["sample"]].append(value)
    return {metric: {s: float(np.mean(v)) for s, v in samples.items()} for metric, samples in found.items() if samples}


def _swept(predictions: Sequence[Mapping], split: str) -> list[tuple[str, str, list[Mapping]]]:
    runs: dict[tuple[str, str], list[Mapping]] = defaultdict(list)
    for p in predictions:
        if p["split"] == split and p["strength"] is not None and not is_oracle(p["method"]):
            runs[p["direction"], p["method"]].append(p)
    return [(*key, rows) for key, rows in runs.items()]


def first_strengths(runs: Sequence[Mapping], base: Mapping[str, str], event: str) -> dict[str, float]:
    """The least strength at which each sample that can ``event`` does so; infinity where none does it."""
    at = {s: np.inf for s, outcome in base.items() if outcome in EVENTS[event]}
    for p in runs:
        if p["sample"] in at and p["outcome"] == MEANT[event]:
            at[p["sample"]] = min(at[p["sample"]], abs(p["strength"]))
    return at


def _line(predictor: Sequence[float], at: Sequence[float]) -> tuple | None:
    x, y = np.array(predictor, float), np.array(at, float)
    happens = np.isfinite(y)
    if min(happens.sum(), (~happens).sum()) < FEWEST:
        return None
    rho = interval(bootstrap(lambda i: spearman(x[i], y[i]), range(len(x)), DRAWS)) or (None, None)
    area = interval(bootstrap(lambda i: auroc(x[i], happens[i]), range(len(x)), DRAWS)) or (None, None)
    rank = spearman(x, y)
    return len(x), int(happens.sum()), rank if np.isfinite(rank) else None, *rho, auroc(x, happens), *area


def mean_auroc(cells: Sequence[Cell]) -> Mean:
    """Mean AUROC over methods and directions, and its interval: a draw of test samples is the same for all of them."""
    samples = list(dict.fromkeys(s for cell in cells for s in cell))
    row = [{s: i for i, s in enumerate(cell)} for cell in cells]
    place = [np.array([r.get(s, -1) for s in samples]) for r in row]
    x, happens = (
        [np.array([value[k] for value in cell.values()], kind) for cell in cells] for k, kind in ((0, float), (1, bool))
    )

    def statistic(drawn: np.ndarray) -> float:
        areas = [
            auroc(x[c][rows], happens[c][rows]) for c, at in enumerate(place) for rows in [at[drawn][at[drawn] >= 0]]
        ]
        found = [area for area in areas if np.isfinite(area)]
        return float(np.mean(found)) if found else np.nan

    return statistic(np.arange(len(samples))), interval(bootstrap(statistic, samples, DRAWS))


def _findings(cells: Mapping[Key, Sequence[Cell]], means: Mapping[Key, Mean]) -> list[Finding]:
    """Per event, each predictor's mean AUROC over methods and directions, the most telling first."""
    out = []
    for event in EVENTS:
        found = {name: mean for (e, name), mean in means.items() if e == event}
        if found:
            telling = {name: abs(mean - 0.5) for name, (mean, _) in found.items()}
            order = sorted(found, key=telling.__getitem__, reverse=True)
            said = ", ".join(
                f"{name} {mean:.2f}" + (" [{:.2f}, {:.2f}]".format(*ci) if ci else "")
                for name in order
                for mean, ci in [found[name]]
            )
            runs = max(len(cells[event, name]) for name in found)
            text = (
                f"what tells a sample that {event} (mean AUROC over {runs} pairs of method and direction; 0.5 is"
                f" chance, below it low values tell): {said}"
            )
            out.append(
                Finding(text, values={name: {"auroc": found[name][0], "interval": found[name][1]} for name in order})
            )
    return out


def _figure(rows: Sequence[tuple], means: Mapping[Key, Mean]) -> Figure:
    events = [event for event in EVENTS if any(e == event for e, _ in means)]
    names = list(dict.fromkeys(name for _, name in means))

    def draw(figure: Any) -> None:
        for ax, event in zip(
            figure.subplots(1, len(events), sharex=True, sharey=True, squeeze=False)[0], events, strict=True
        ):
            for y, name in enumerate(names):
                areas = [row[9] for row in rows if row[2:4] == (event, name)]
                ax.plot(
                    areas,
                    y + np.linspace(-0.25, 0.25, len(areas)),
                    linestyle="",
                    marker="o",
                    markersize=4,
                    color="#999999",
                    alpha=0.7,
                )
                if (event, name) in means:
                    value, ci = means[event, name]
                    low, high = ci or (value, value)
                    error = [[max(0.0, value - low)], [max(0.0, high - value)]]
                    ax.errorbar(
                        [value], [y], xerr=error, color="#0072B2", marker="D", capsize=4, linestyle="", zorder=3
                    )
            ax.axvline(0.5, color="#444444", linewidth=1)
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.set_xlabel("AUROC")
            ax.set_title(f"which sample {event}")

    caption = (
        "Grey: each method toward one direction; blue: their mean with its 95 % interval. At 0.5 the predictor tells"
        " nothing; left of it, low values tell."
    )
    return Figure(
        "explained", "What tells a sample that flips, or breaks", caption, draw, (10.0, 1.6 + 0.6 * len(names))
    )
