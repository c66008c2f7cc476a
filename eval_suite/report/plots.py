"""Figures of the outcomes: follow and error against strength, and preference by difficulty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from eval_suite.report import style
from eval_suite.report.initial import turning
from eval_suite.report.plots_predictors import fifths
from eval_suite.report.rows import TOTAL, Group, Predictions, groups, is_oracle, labels, percent, target
from eval_suite.report.style import Figure, Look
from factory.diagnose.profiles import PROMPTS
from factory.diagnose.summary import Predictor

_PREFERENCE = LinearSegmentedColormap.from_list("preference", [PROMPTS["text"][1], "#f7f7f7", PROMPTS["vision"][1]])


def draw_all(
    results: Mapping,
    diagnostics: Sequence[Mapping],
    predictions: Predictions,
    budget: float | None = None,
    predictors: Iterable[Predictor] = (),
) -> tuple[list[Figure], list[str]]:
    """Every figure the inputs allow, and one sentence for each that they do not.

    `budget` is the share of errors allowed on dev; it is drawn where it is known. `predictors`: what diagnostics offer.
    """
    found, offered = groups(results), list(predictors)
    palette = style.looks((m for g in found for m in g.methods(every=True)), labels(results)[0])
    figures: list[Figure] = []
    missing: list[str] = []

    def keep(drawn: Figure | str) -> None:
        if isinstance(drawn, str):
            missing.append(drawn)
        else:
            figures.append(drawn)

    with style.styled():
        suffixes = [f"_{index + 1}" if len(found) > 1 else "" for index in range(len(found))]
        for group, suffix in zip(found, suffixes, strict=True):
            keep(strength_curves(group, palette, budget, suffix))
            keep(turning(group, palette, predictions, suffix))
            for drawn in fifths(group, palette, predictions, diagnostics, offered, suffix):
                keep(drawn)
        for group, suffix in zip(found, suffixes, strict=True):
            keep(tiers(group, predictions, diagnostics, suffix))
    return figures, missing


def strength_curves(group: Group, palette: Mapping[str, Look], budget: float | None, suffix: str = "") -> Figure | str:
    """Follow and error rate against steering strength, one column per direction; a sentence where nothing was swept."""
    split = group.curve_split
    if split is None:
        return f"Strength curves ({group.title()}): no method was scored at more than one strength."
    directions = [d for d in group.directions if any(d == direction for direction, _ in group.swept(split))]
    figure = style.canvas(5.2 * len(directions) + (1.2 if len(directions) == 1 else 0), 6.6)
    axes = figure.subplots(2, len(directions), sharex="col", squeeze=False, height_ratios=[1.5, 1])
    banded = len({method for _, method in group.swept(split)}) <= style.BANDED
    handles: dict[str, Artist] = {}
    for column, direction in enumerate(directions):
        for row, metric in enumerate(("follow", "error")):
            ax = axes[row, column]
            handles |= _curves(ax, group, direction, metric, split, palette, banded)
            ax.set_ylabel(("Follows the target (%)" if row == 0 else "Error (%)") if column == 0 else "")
        if budget is not None:
            line = axes[1, column].axhline(100 * budget, color="#222222", linewidth=1, linestyle=(0, (1, 2)))
            handles["error budget"] = line
        axes[0, column].set_title(f"Towards {target(direction, 'no direction')}")
        axes[1, column].set_xlabel("Steering strength")
    for row in axes:
        top = max(ax.get_ylim()[1] for ax in row)
        for ax in row:
            ax.set_ylim(-0.02 * top, min(top, 103))
    style.legend_below(figure, handles)
    caption = (
        f"Share of {group.samples_of(split)} that follow the target (top) and that end in an error (bottom) against"
        f" steering strength.{' Bands are 95 % intervals.' * banded} The large mark is the strength chosen on dev."
        " Dashed lines are the methods without a strength, oracles left out."
    )
    title = _named(group, suffix, "Follow and error against strength")
    return style.finish(figure, f"strength{suffix}", title, caption, wide=len(directions) > 1)


def _curves(
    ax: Axes,
    group: Group,
    direction: str | None,
    metric: str,
    split: str | None,
    palette: Mapping[str, Look],
    banded: bool,
) -> dict[str, Artist]:
    handles: dict[str, Artist] = {}
    for index, method in enumerate(group.methods(direction)):
        look = palette[method]
        if is_oracle(method):
            continue
        swept = group.numbers(direction, method, split)
        if not swept:
            cell = group.cell(direction, method, TOTAL, metric, None, split)
            if cell is not None:
                dashes = (4 * index, (4, 4))  # shifted from line to line, so that two at the same height both show
                handles[method] = ax.axhline(100 * cell.value, color=look.color, linewidth=1.5, linestyle=dashes)
            continue
        cells = [(s, group.cell(direction, method, TOTAL, metric, s, split)) for s in swept]
        points = [(s, cell) for s, cell in cells if cell is not None]
        if not points:
            continue
        x = [s for s, _ in points]
        (handles[method],) = ax.plot(
            x, [100 * c.value for _, c in points], color=look.color, marker=look.marker, markersize=5
        )
        low = [100 * c.low for _, c in points if c.low is not None]
        high = [100 * c.high for _, c in points if c.high is not None]
        if banded and len(low) == len(high) == len(points):
            style.band(ax, x, low, high, look.color)
        choice = group.choice(direction, method)
        for s, cell in points:
            if choice and choice.chosen and s == choice.strength:
                ax.plot(
                    [s],
                    [100 * cell.value],
                    color=look.color,
                    marker=look.marker,
                    markersize=11,
                    markeredgecolor="white",
                    markeredgewidth=1.4,
                    zorder=5,
                )
    return handles


def tiers(group: Group, predictions: Predictions, diagnostics: Sequence[Mapping], suffix: str = "") -> Figure | str:
    """How often the unsteered model follows the image, by visual and textual difficulty tier."""
    known = {
        (r.get("task"), r["sample"]): r
        for r in [*diagnostics, *predictions.records]
        if r.get("visual_tier") is not None and r.get("text_tier") is not None
    }
    name = f"Preference by difficulty ({group.title()})"
    if not known:
        return f"{name}: no difficulty tiers were recorded."
    direction = next((d for d in ("vision", "text") if d in group.directions), None)
    split = group.scored_split
    choice = group.choice(direction, group.unsteered)
    rows = group.predictions(predictions, direction, group.unsteered, choice.strength if choice else None, split)
    rows = [r for r in rows if (r.get("task"), r["sample"]) in known]
    if direction is None or not rows:
        return f"{name}: no predictions of the unsteered model on samples with known tiers."
    image = "follow" if direction == "vision" else "compete"
    hits: dict[tuple, list[bool]] = {}
    for r in rows:
        tier = known[(r.get("task"), r["sample"])]
        hits.setdefault((tier["visual_tier"], tier["text_tier"]), []).append(r["outcome"] == image)
    visual, text = (sorted({key[i] for key in hits}, key=_tier_key) for i in (0, 1))
    grid = np.array([[np.mean(hits[v, t]) if (v, t) in hits else np.nan for t in text] for v in visual])
    figure = style.canvas(2.6 + 1.15 * len(text), 1.9 + 0.95 * len(visual))
    ax = figure.subplots()
    ax.grid(False)
    picture = ax.imshow(100 * grid, cmap=_PREFERENCE, vmin=0, vmax=100, aspect="auto")
    for i, v in enumerate(visual):
        for j, t in enumerate(text):
            label = f"{percent(grid[i, j])}\nn = {len(hits.get((v, t), []))}"
            ax.text(j, i, label, ha="center", va="center", fontsize=11, color=_ink(float(grid[i, j])))
    ax.set_xticks(range(len(text)), [str(t) for t in text])
    ax.set_yticks(range(len(visual)), [str(v) for v in visual])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("Textual difficulty (tier)")
    ax.set_ylabel("Visual difficulty (tier)")
    bar = figure.colorbar(picture, ax=ax, label="Follows the image (%)")
    bar.outline.set_visible(False)
    caption = (
        f"Share of {split or 'all'} samples on which the unsteered model follows the image, by the sample's "
        "visual (rows) and textual (columns) difficulty tier; n is the number of samples in a cell."
    )
    title = _named(group, suffix, "Preference by difficulty")
    return style.finish(figure, f"tiers{suffix}", title, caption, wide=False)


def _ink(share: float) -> str:
    """The colour of a text on the cell of a share; on the bare paper of none one that turns with the page."""
    if not np.isfinite(share):
        return "#444444"
    red, green, blue, _ = _PREFERENCE(share)
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else "#1a1a1a"


def _tier_key(tier: Any) -> tuple[int, float, str]:
    return (0, tier, "") if isinstance(tier, (int, float)) else (1, 0, str(tier))


def _named(group: Group, suffix: str, title: str) -> str:
    return f"{title} ({group.title()})" if suffix else title
