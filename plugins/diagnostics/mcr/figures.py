"""The two figures of a run's MCR: its distribution by task and by prompt (AMPS, Figures 5 and 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.benchmark import Records
from factory.diagnose.profiles import PROMPTS
from factory.diagnose.summary import Figure
from factory.statistics.intervals import bootstrap_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Ratios = dict[tuple[str, str, str], float]
"""By task, sample and prompt."""
AXES = {"R_V_sum": "Visual MCR $R_V$ (share)", "R_V_mean_per_token": "$R_V$, mean per token (share)"}


def ratios(rows: Records, metric: str) -> tuple[str, Ratios]:
    """A metric's values on one split, each the mean over a sample's forms, and the name of the split: test where it was
    measured, else the one with most values.
    """
    found = [row for row in rows if row["metric"] == metric and row["prompt"] in PROMPTS and isfinite(row["value"])]
    counts = Counter(row["split"] for row in found)
    split = "test" if "test" in counts or not counts else counts.most_common(1)[0][0]
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in found:
        if row["split"] == split:
            values.setdefault((row["task"], row["sample"], row["prompt"]), []).append(row["value"])
    return split, {key: float(np.mean(several)) for key, several in values.items()}


def by_task(rows: Records) -> Figure | None:
    """The distribution of R_V per task under each measured prompt (Figure 5); None where R_V was not measured."""
    split, values = ratios(rows, "R_V")
    if not values:
        return None
    tasks, prompts = sorted({task for task, _, _ in values}), _prompts(values)
    width = 0.8 / len(prompts)

    def draw(figure: Canvas) -> None:
        ax = figure.subplots()
        for k, prompt in enumerate(prompts):
            label, color = PROMPTS[prompt]
            for i, task in enumerate(tasks):
                if found := [v for (t, _, p), v in values.items() if (t, p) == (task, prompt)]:
                    _box(ax, found, i + (k - (len(prompts) - 1) / 2) * width, 0.82 * width, color)
            ax.plot([], [], color=color, linewidth=8, alpha=0.75, label=label)
        ax.set_xticks(range(len(tasks)), [task.capitalize().replace("_", "\n") for task in tasks], fontsize=9.5)
        ax.set_xlim(-0.6, len(tasks) - 0.4)
        ax.set_ylabel(AXES["R_V_sum"])
        figure.legend(loc="outside upper center", ncols=len(prompts))

    caption = (
        f"Visual modality contribution ratio per task, {_under(prompts)}; boxes are quartiles, whiskers reach the"
        f" farthest sample within 1.5 interquartile ranges. {_samples(values, split)}. 1 means that the answer is"
        " sensitive to the image alone, 0 to the text alone."
    )
    return Figure("by_task", "Visual MCR by task", caption, draw, (max(5.5, 2.0 + 1.1 * len(tasks)), 4.4))


def by_prompt(rows: Records) -> Figure | None:
    """The distribution and mean of R_V per prompt over all tasks (Figure 6), summed over tokens as published and per
    token; None where neither was measured.
    """
    panels = {metric: found for metric in AXES if (found := ratios(rows, metric))[1]}
    if not panels:
        return None
    prompts = _prompts(*(values for _, values in panels.values()))

    def draw(figure: Canvas) -> None:
        for ax, (metric, (_, values)) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            for at, prompt in enumerate(prompts):
                if found := [v for (_, _, p), v in values.items() if p == prompt]:
                    _violin(ax, found, at, PROMPTS[prompt][1])
            ax.set_xticks(range(len(prompts)), [PROMPTS[p][0].replace(" ", "\n") for p in prompts])
            ax.set_xlim(-0.6, len(prompts) - 0.3)
            ax.set_ylabel(AXES[metric])

    split, values = next(iter(panels.values()))
    caption = (
        f"Visual MCR over all tasks, {_under(prompts)}: distribution over {_samples(values, split)}, and the mean"
        " (number) with its 95 % bootstrap interval."
    )
    if len(panels) > 1:
        caption += (
            " Left as published, summed over tokens; right divided by each modality's token count, which takes out"
            " that images have more tokens than text."
        )
    return Figure("by_prompt", "Visual MCR by prompt", caption, draw, (max(5.0, 3.0 * len(panels)), 4.2))


def _prompts(*measured: Ratios) -> list[str]:
    found = {prompt for values in measured for _, _, prompt in values}
    return [prompt for prompt in PROMPTS if prompt in found]


def _samples(values: Ratios, split: str) -> str:
    n = len({(task, sample) for task, sample, _ in values})
    return f"{n} {split} sample{'' if n == 1 else 's'}"


def _under(prompts: Sequence[str]) -> str:
    parts = [f"under the {p} prompt" for p in ("vision", "text") if p in prompts]
    parts += ["without a preference prompt"] if "base" in prompts else []
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


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
        medianprops={"color": "black", "linewidth": 1.2},
        flierprops={"marker": ".", "markersize": 2.5, "markeredgecolor": color, "alpha": 0.6},
    )


def _violin(ax: Axes, values: list[float], at: float, color: str) -> None:
    if len(set(values)) > 1:
        drawn: Mapping[str, Any] = ax.violinplot([values], positions=[at], widths=0.75, showextrema=False)
        for body in drawn["bodies"]:
            body.set(facecolor=color, alpha=0.35, edgecolor=color, linewidth=1)
    mean, (low, high) = float(np.mean(values)), bootstrap_mean(values)
    around = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
    ax.errorbar([at], [mean], yerr=around, fmt="o", color="#222222", markersize=6, capsize=4, linewidth=1.8)
    box = {"boxstyle": "round,pad=0.15", "facecolor": ax.get_facecolor(), "edgecolor": "none", "alpha": 0.8}
    beside: dict[str, Any] = {
        "xytext": (8, 0),
        "textcoords": "offset points",
        "va": "center",
        "fontsize": 11,
        "bbox": box,
    }
    ax.annotate(f"{mean:.2f}", (at, mean), **beside)
