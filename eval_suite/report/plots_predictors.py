"""Figures of what diagnostics offer as predictors, against what steering does to a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from eval_suite.report import style
from eval_suite.report.explain import measured
from eval_suite.report.rows import Group, Predictions, is_oracle, strength_text, target
from eval_suite.report.style import Figure, Look
from factory.diagnose.summary import Predictor
from factory.statistics.intervals import wilson

PARTS = 5
SMALLEST = 25  # predictions below which a method is left out
TELLING_ERROR = 0.10  # below this the error rates of the parts are too near zero to differ visibly
Chosen = dict[str, list[Mapping]]
"""By method its predictions at one strength."""


def fifths(
    group: Group,
    palette: Mapping[str, Look],
    predictions: Predictions,
    diagnostics: Sequence[Mapping],
    predictors: Iterable[Predictor],
    suffix: str = "",
) -> list[Figure | str]:
    """Of every predictor the figure of what happens by fifths of it, or why there is none."""
    offered = {predictor.metric: predictor for predictor in predictors}
    if not offered:
        return [f"What tells which sample follows ({group.title()}): no diagnostic of the run offers a predictor."]
    split = group.scored_split
    known = measured(diagnostics, offered, split)
    return [
        _by_fifths(group, palette, predictions, predictor, known[metric], suffix)
        if metric in known
        else f"By {predictor.name} ({group.title()}): it was not measured on {split} without a preference prompt."
        for metric, predictor in offered.items()
    ]


def _by_fifths(
    group: Group,
    palette: Mapping[str, Look],
    predictions: Predictions,
    predictor: Predictor,
    values: Mapping[str, float],
    suffix: str,
) -> Figure | str:
    """Follow and error rate by fifth of a predictor's ``values`` of the samples, at a fixed strength."""
    split, panels = group.scored_split, []
    for direction in group.directions:
        picked, how = _fixed_strengths(group, predictions, direction)
        found = {m: group.predictions(predictions, direction, m, strength, split) for m, strength in picked.items()}
        chosen = {m: [p for p in rows if p["sample"] in values] for m, rows in found.items()}
        chosen = {m: rows for m, rows in chosen.items() if len(rows) >= SMALLEST}
        if any(method != group.unsteered for method in chosen):
            panels.append((direction, chosen, how))
    if not panels:
        return f"By {predictor.name} ({group.title()}): fewer than {SMALLEST} steered predictions have one."
    figure = style.canvas(5.2 * len(panels) + (1.2 if len(panels) == 1 else 0), 6.6)
    axes = figure.subplots(2, len(panels), sharex="col", squeeze=False, height_ratios=[1.5, 1])
    handles: dict[str, Artist] = {}
    for column, (direction, chosen, how) in enumerate(panels):
        at = {s: predictor.toward(v, direction or "") for s, v in values.items()}
        handles |= _panel(list(axes[:, column]), chosen, at, palette)
        axes[0, column].set_title(f"Towards {target(direction, 'no direction')}{how}")
        axes[1, column].set_xlabel(f"{predictor.name[0].upper()}{predictor.name[1:]} (fifths of the samples)")
    for ax, label in zip(axes[:, 0], ("Follows the target (%)", "Error (%)"), strict=True):
        ax.set_ylabel(label)
    for row in axes:
        top = min(103.0, max(ax.get_ylim()[1] for ax in row))
        for ax in row:
            ax.set_ylim(-0.02 * top, top)
    style.legend_below(figure, handles)
    caption = (
        f"Follow (top) and error rate (bottom) of {split} samples, grouped into five equal parts by {predictor.name},"
        f" measured without a preference prompt. Bars are 95 % Wilson intervals. {_how_sentence(panels)}"
    )
    title = f"Follow and error by {predictor.name}" + (f" ({group.title()})" if suffix else "")
    return style.finish(figure, f"by_{predictor.metric}{suffix}", title, caption, wide=len(panels) > 1)


def _panel(
    axes: Sequence[Axes], chosen: Chosen, at: Mapping[str, float], palette: Mapping[str, Look]
) -> dict[str, Line2D]:
    """Draw one direction's follow and error rates by fifths of ``at``; the lines by method."""
    used = np.array([at[sample] for sample in sorted({p["sample"] for rows in chosen.values() for p in rows})])
    edges, handles = np.quantile(used, np.linspace(0, 1, PARTS + 1)), {}
    for ax, metric in zip(axes, ("follow", "error"), strict=True):
        for place, (method, rows) in enumerate(chosen.items()):
            shift = 0.09 * (place - (len(chosen) - 1) / 2)
            handles[method] = _binned(ax, rows, at, edges, metric, palette[method], shift)
    digits = 2 if np.diff(edges).min() >= 0.01 else 3
    axes[1].set_xticks(range(PARTS), [f"{a:.{digits}f}–\n{b:.{digits}f}" for a, b in pairwise(edges)])
    return handles


def _how_sentence(panels: list) -> str:
    if all(how for _, _, how in panels):
        return (
            "All methods of a panel run at the same strength: the lowest shared one with a mean error of at least "
            f"{100 * TELLING_ERROR:.0f} %, or the highest where none has."
        )
    return "Each method runs at its own reported strength: none was scored on all of them for several methods."


def _fixed_strengths(group: Group, predictions: Predictions, direction: str | None) -> tuple[dict, str]:
    """`{method: strength}` and a title suffix naming the strength; without a shared strength each keeps its own."""
    errors: dict[float, dict[str, float]] = {}
    steered = set()
    for method in group.methods(direction):
        for strength in group.strengths(direction, method, group.scored_split):
            if isinstance(strength, (int, float)) and not is_oracle(method):
                rows = group.predictions(predictions, direction, method, strength, group.scored_split)
                if rows:
                    steered.add(method)
                    errors.setdefault(strength, {})[method] = np.mean([p["outcome"] == "error" for p in rows])
    unsteered = {group.unsteered: None} if group.unsteered in group.methods(direction) else {}
    most = max((len(found) for found in errors.values()), default=0)
    if (most > 1 or len(steered) == 1) and group.swept(group.scored_split):
        shared = sorted(s for s, found in errors.items() if len(found) == most)
        strength = next((s for s in shared if np.mean(list(errors[s].values())) >= TELLING_ERROR), shared[-1])
        return unsteered | {m: strength for m in errors[strength]}, f", strength {strength_text(strength)}"
    own = {m: group.choice(direction, m) for m in steered}
    return unsteered | {m: c.strength for m, c in own.items() if c}, ""


def _binned(
    ax: Axes, rows: list[Mapping], at: Mapping[str, float], edges: np.ndarray, metric: str, look: Look, shift: float
) -> Line2D:
    bins: list[list[bool]] = [[] for _ in range(PARTS)]
    for p in rows:
        part = int(np.searchsorted(edges[1:-1], at[p["sample"]], side="right"))
        bins[part].append(p["outcome"] == metric)
    filled = [(i, found) for i, found in enumerate(bins) if found]
    x = [i + shift for i, _ in filled]  # side by side, so that the interval bars do not hide each other
    shares = [100 * np.mean(found) for _, found in filled]
    spans = [wilson(sum(found), len(found)) for _, found in filled]
    ax.errorbar(
        x,
        shares,
        yerr=[
            [s - 100 * low for s, (low, _) in zip(shares, spans, strict=True)],
            [100 * high - s for s, (_, high) in zip(shares, spans, strict=True)],
        ],
        fmt="none",
        ecolor=look.color,
        elinewidth=1.3,
        alpha=0.55,
    )
    (line,) = ax.plot(x, shares, color=look.color, marker=look.marker)
    return line
