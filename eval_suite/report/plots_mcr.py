"""Figures of the modality contribution ratio (MCR): by task, by prompt, and against what steering does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from eval_suite.report import style
from eval_suite.report.rows import TARGETS, TASKS, Group, Predictions, is_oracle, short_task, strength_text
from eval_suite.report.style import PROMPTS, Figure, Look
from factory.statistics.intervals import bootstrap_mean, wilson

RATIO, PER_TOKEN = "R_V", "R_V_mean_per_token"
_BINS, _SMALLEST = 5, 25
_TELLING_ERROR = 0.10  # below this the error rates of the bins are too near zero to differ visibly


def ratios(diagnostics: Sequence[Mapping], metric: str = RATIO) -> tuple[str | None, dict[tuple, float]]:
    """Whole-model values of one metric on one split: `{(task, sample, prompt): value}`.

    Test where it was measured, else the split with most values. Per-layer and per-head rows are left out.
    """
    rows = [
        r
        for r in diagnostics
        if r.get("metric") == metric
        and r.get("layer") in (None, -1, "all")
        and r.get("head") in (None, -1, "all")
        and r.get("value") is not None
        and np.isfinite(r["value"])
    ]
    if not rows:
        return None, {}
    counts = Counter(r.get("split") for r in rows)
    split = "test" if "test" in counts else counts.most_common(1)[0][0]
    values: dict[tuple, list[float]] = {}
    for r in rows:
        if r.get("split") == split:
            values.setdefault((r.get("task"), r["sample"], r.get("prompt") or "base"), []).append(r["value"])
    return split, {key: float(np.mean(found)) for key, found in values.items()}


def mcr_by_task(diagnostics: Sequence[Mapping]) -> Figure | str:
    """Distribution of the visual MCR per task under each measured prompt (Figure 5 of the AMPS paper)."""
    split, values = ratios(diagnostics)
    if not values:
        return "MCR by task: no MCR was measured."
    present = {task for task, _, _ in values}
    tasks = [t for t in TASKS if t in present] + sorted(str(t) for t in present if t not in TASKS)
    prompts = [p for p in PROMPTS if any(key[2] == p for key in values)]
    figure = style.canvas(max(5.5, 2.0 + 1.05 * len(tasks)), 4.4)
    ax = figure.subplots()
    width = 0.8 / len(prompts)
    for k, prompt in enumerate(prompts):
        label, color = PROMPTS[prompt]
        for i, task in enumerate(tasks):
            found = [v for (t, _, p), v in values.items() if str(t) == task and p == prompt]
            if found:
                _box(ax, found, i + (k - (len(prompts) - 1) / 2) * width, 0.82 * width, color)
        ax.plot([], [], color=color, linewidth=8, alpha=0.75, label=label)
    ax.set_xticks(range(len(tasks)), [short_task(t) for t in tasks])
    ax.set_xlim(-0.6, len(tasks) - 0.4)
    ax.set_ylabel("Visual MCR $R_V$ (share)")
    figure.legend(loc="outside upper center", ncols=len(prompts))
    n = len({key[:2] for key in values})
    caption = (
        f"Visual modality contribution ratio per task, {_under(prompts)}; boxes are quartiles, whiskers reach "
        f"the farthest sample within 1.5 interquartile ranges. {n} {split or ''} samples. 1 means that the "
        "answer is sensitive to the image alone, 0 to the text alone."
    )
    return style.finish(figure, "mcr_by_task", "Visual MCR by task", caption, wide=len(tasks) > 3)


def _box(ax: Axes, values: list[float], at: float, width: float, color: str) -> None:
    ax.boxplot(
        [values],
        positions=[at],
        widths=width,
        patch_artist=True,
        manage_ticks=False,
        showfliers=True,
        boxprops={"facecolor": color, "alpha": 0.75, "edgecolor": color},
        whiskerprops={"color": color},
        capprops={"color": color},
        medianprops={"color": "white", "linewidth": 1.8},
        flierprops={"marker": ".", "markersize": 2.5, "markeredgecolor": color, "alpha": 0.6},
    )


def mcr_by_prompt(diagnostics: Sequence[Mapping]) -> Figure | str:
    """Distribution and mean of the visual MCR per prompt over all tasks (Figure 6 of the AMPS paper)."""
    panels = [(metric, *ratios(diagnostics, metric)) for metric in (RATIO, PER_TOKEN)]
    panels = [(metric, split, values) for metric, split, values in panels if values]
    if not panels:
        return "MCR by prompt: no MCR was measured."
    prompts = [p for p in PROMPTS if any(key[2] == p for _, _, values in panels for key in values)]
    figure = style.canvas(max(5.0, 3.2 * len(panels)), 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (metric, _, values) in zip(axes, panels, strict=True):
        for at, prompt in enumerate(prompts):
            found = [v for key, v in values.items() if key[2] == prompt]
            if found:
                _violin(ax, found, at, PROMPTS[prompt][1])
        ax.set_xticks(range(len(prompts)), [PROMPTS[p][0].replace(" ", "\n") for p in prompts])
        ax.set_xlim(-0.6, len(prompts) - 0.3)
        ax.set_ylabel("Visual MCR $R_V$ (share)" if metric == RATIO else "$R_V$, mean per token (share)")
    split, n = panels[0][1], len({key[:2] for key in panels[0][2]})
    caption = (
        f"Visual MCR over all tasks, {_under(prompts)}: distribution over {n} {split or ''} samples, and the "
        "mean (number) with its 95 % bootstrap interval."
    )
    if len(panels) > 1:
        caption += (
            " Left as published, summed over tokens; right divided by each modality's token count, which "
            "takes out that images have more tokens than text."
        )
    return style.finish(figure, "mcr_by_prompt", "Visual MCR by prompt", caption, wide=False)


def _violin(ax: Axes, values: list[float], at: float, color: str) -> None:
    if len(set(values)) > 1:
        bodies: Any = ax.violinplot([values], positions=[at], widths=0.75, showextrema=False)["bodies"]
        for body in bodies:  # a list, of which the stubs promise less
            body.set(facecolor=color, alpha=0.35, edgecolor=color, linewidth=1)
    mean = float(np.mean(values))
    low, high = bootstrap_mean(values)
    ax.errorbar(
        [at],
        [mean],
        yerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
        fmt="o",
        color="#1a1a1a",
        markersize=6,
        capsize=4,
        linewidth=1.8,
    )
    ax.annotate(
        f"{mean:.2f}",
        (at, mean),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=11,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def mcr_quintiles(
    group: Group,
    palette: Mapping[str, Look],
    predictions: Predictions,
    diagnostics: Sequence[Mapping],
    suffix: str = "",
) -> Figure | str:
    """Follow and error rate by quintile of the sample's own visual MCR, at a fixed strength."""
    name = f"MCR against error ({group.title()})"
    split, values = ratios(diagnostics)
    base = {(task, sample): v for (task, sample, prompt), v in values.items() if prompt == "base"}
    if not base:
        return f"{name}: no MCR was measured without a preference prompt."
    if split != group.scored_split:
        return f"{name}: MCR was measured on {split}, outcomes on {group.scored_split}."
    panels = []
    for direction in group.directions:
        picked, how = _fixed_strengths(group, predictions, direction)
        chosen = {
            method: [
                p
                for p in group.predictions(predictions, direction, method, strength, split)
                if (p.get("task"), p["sample"]) in base
            ]
            for method, strength in picked.items()
        }
        chosen = {method: rows for method, rows in chosen.items() if len(rows) >= _SMALLEST}
        if any(method != group.unsteered for method in chosen):
            panels.append((direction, chosen, how))
    if not panels:
        return f"{name}: fewer than {_SMALLEST} steered predictions have an MCR."
    figure = style.canvas(5.2 * len(panels) + (1.2 if len(panels) == 1 else 0), 6.6)
    axes = figure.subplots(2, len(panels), sharex="col", squeeze=False, height_ratios=[1.5, 1])
    handles: dict[str, Artist] = {}
    for column, (direction, chosen, how) in enumerate(panels):
        used = np.array([base[key] for key in {(p.get("task"), p["sample"]) for rows in chosen.values() for p in rows}])
        edges = np.quantile(used, np.linspace(0, 1, _BINS + 1))
        for row, metric in enumerate(("follow", "error")):
            for at, (method, rows) in enumerate(chosen.items()):
                shift = 0.09 * (at - (len(chosen) - 1) / 2)
                handles[method] = _binned(axes[row, column], rows, base, edges, metric, palette[method], shift)
            axes[row, column].set_ylabel(("Follows the target (%)" if row == 0 else "Error (%)") if column == 0 else "")
        axes[0, column].set_title(f"Towards {TARGETS.get(direction or '', direction or 'no direction')}{how}")
        digits = 2 if np.diff(edges).min() >= 0.01 else 3
        axes[1, column].set_xticks(range(_BINS), [f"{a:.{digits}f}–\n{b:.{digits}f}" for a, b in pairwise(edges)])
        axes[1, column].set_xlabel("Visual MCR $R_V$ of the sample (quintile)")
    for row in axes:
        top = min(103.0, max(ax.get_ylim()[1] for ax in row))
        for ax in row:
            ax.set_ylim(-0.02 * top, top)
    style.legend_below(figure, handles)
    caption = (
        f"Follow (top) and error rate (bottom) of {split} samples, grouped into five equal parts by their "
        "visual MCR without a preference prompt. Bars are 95 % Wilson intervals. " + _how_sentence(panels)
    )
    title = "MCR against error" + (f" ({group.title()})" if suffix else "")
    return style.finish(figure, f"mcr_against_error{suffix}", title, caption, wide=len(panels) > 1)


def _how_sentence(panels: list) -> str:
    if all(how for _, _, how in panels):
        return (
            "All methods of a panel run at the same strength: the lowest shared one with a mean error of at least "
            f"{100 * _TELLING_ERROR:.0f} %, or the highest where none has."
        )
    return "Each method runs at its own reported strength, because no strength was scored for several of them."


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
    if most > 1 or len(steered) == 1:
        shared = sorted(s for s, found in errors.items() if len(found) == most)
        strength = next((s for s in shared if np.mean(list(errors[s].values())) >= _TELLING_ERROR), shared[-1])
        return unsteered | {m: strength for m in errors[strength]}, f", strength {strength_text(strength)}"
    own = {m: group.choice(direction, m) for m in steered}
    return unsteered | {m: c.strength for m, c in own.items() if c}, ""


def _binned(
    ax: Axes, rows: list[Mapping], base: Mapping[tuple, float], edges: np.ndarray, metric: str, look: Look, shift: float
) -> Artist:
    bins: list[list[bool]] = [[] for _ in range(_BINS)]
    for p in rows:
        at = int(np.searchsorted(edges[1:-1], base[(p.get("task"), p["sample"])], side="right"))
        bins[at].append(p["outcome"] == metric)
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


def _under(prompts: Sequence[str]) -> str:
    parts = [f"under the {p} prompt" for p in ("vision", "text") if p in prompts]
    parts += ["without a preference prompt"] if "base" in prompts else []
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
