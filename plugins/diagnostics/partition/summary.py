"""Tables and figure of how models part image and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import TYPE_CHECKING, Any

from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.statistics.intervals import bootstrap_mean

if TYPE_CHECKING:
    import matplotlib.figure

Rows = Sequence[Mapping[str, Any]]
ALL = "all"
NAMES = {
    "share": "uni-modal share: mean of the gate",
    "energy": "uni-modal share of the squared length",
    "error": "reconstruction error",
    "overlap": "cos² of the parts",
    "angle": "mean principal angle, degrees",
}
MODALITIES = ("image", "text")


def beside_of(found: Mapping[str, Rows]) -> Summary | None:
    """What models that part image and text say, by name; None where none does."""
    parted = {name: rows for name, rows in found.items() if rows}
    if not parted:
        return None
    findings = tuple(_finding(name, rows) for name, rows in parted.items())
    tables = [_by_task(name, rows) for name, rows in parted.items()]
    figure = Figure(
        "shares",
        "Uni-modal share by task",
        "share of the squared length of a modality's tokens that its uni-modal part has, with 95 % intervals over"
        " prompts; what lacks to 1 is the paired part's",
        lambda f: _draw(f, parted),
        (8.0, 3.0 * len(parted) + 0.6),
    )
    return Summary("How image and text are parted", findings, tuple(tables), (figure,), leads=True)


def values(rows: Rows, metric: str, task: str = ALL) -> list[float]:
    return [
        row["value"]
        for row in rows
        if row["metric"] == metric and not isnan(row["value"]) and task in (ALL, row.get("task"))
    ]


def tasks_of(rows: Rows) -> list[str]:
    return [ALL, *dict.fromkeys(row["task"] for row in rows if row.get("task"))]


def _finding(name: str, rows: Rows) -> Finding:
    means = {
        f"{metric}_{m}/{task}": fmean(own)
        for task in tasks_of(rows)
        for m in MODALITIES
        for metric in NAMES
        if (own := values(rows, f"{metric}_{m}", task))
    }
    n = len({row["sample"] for row in rows})
    told = [
        f"{100 * means[f'share_{m}/{ALL}']:.1f} % of the {m} (of its squared length {_spread(means, m)} % by task)"
        for m in MODALITIES
        if f"share_{m}/{ALL}" in means
    ]
    return Finding(
        f"{name} calls {' and '.join(told)} uni-modal ({n} prompts); the rest is of the pair",
        values={f"{name}/{key}": value for key, value in means.items()},
    )


def _spread(means: Mapping[str, float], m: str) -> str:
    each = [100 * v for key, v in means.items() if key.startswith(f"energy_{m}/") and not key.endswith(f"/{ALL}")]
    return f"{min(each):.1f} to {max(each):.1f}" if each else "no tasks"


def _by_task(name: str, rows: Rows) -> Table:
    tasks = tasks_of(rows)
    lines = tuple(
        (m, what, *(_cell(values(rows, f"{metric}_{m}", task)) for task in tasks))
        for m in MODALITIES
        for metric, what in NAMES.items()
    )
    return Table(
        f"{name}-parts", f"{name}: both parts by task, with 95 % intervals", ("modality", "what", *tasks), lines
    )


def _cell(own: Sequence[float]) -> str | None:
    if not own:
        return None
    low, high = bootstrap_mean(own)
    return f"{fmean(own):.3f} ({low:.3f}–{high:.3f})"


def _draw(figure: matplotlib.figure.Figure, parted: Mapping[str, Rows]) -> None:
    grid = figure.subplots(len(parted), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, rows) in zip(grid, parted.items(), strict=True):
        tasks = tasks_of(rows)
        for i, m in enumerate(MODALITIES):
            each = [values(rows, f"energy_{m}", task) for task in tasks]
            at = [k + 0.4 * i - 0.2 for k, own in enumerate(each) if own]
            kept = [own for own in each if own]
            means = [fmean(own) for own in kept]
            ends = [bootstrap_mean(own) for own in kept]
            bars = [
                [v - low for v, (low, _) in zip(means, ends, strict=True)],
                [high - v for v, (_, high) in zip(means, ends, strict=True)],
            ]
            axes.bar(at, means, 0.38, yerr=bars, capsize=2, color=f"C{i}", label=m)
        axes.axhline(0.5, linestyle="--", linewidth=1, color="grey")
        axes.set(ylim=(0, 1), title=name, ylabel="uni-modal share")
        axes.set_xticks(range(len(tasks)), tasks, rotation=20)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
