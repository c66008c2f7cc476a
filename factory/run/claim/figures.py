"""The figures of a claim: differences to the null, what a planted effect of which size shows, and AUROCs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from factory.data.sources import in_words
from factory.diagnose.summary import Figure
from factory.run.claim.entrants import LEARNED, OWN, SHUFFLED
from factory.run.claim.numbers import Against, Telling

if TYPE_CHECKING:
    import matplotlib.figure

COLORS = {LEARNED: "#44519e", OWN: "#3b8f6d", SHUFFLED: "#8a8a8a"}
SAID = {LEARNED: "learned scale", OWN: "own measured scale", SHUFFLED: "learned from shuffled numbers"}
MARKS = {"flips": "o", "breaks": "s"}


def forest(whole: Sequence[Against], each: Sequence[Against], null: str) -> Figure:
    """Every family's difference to the null: all draws and seeds with an interval, single ones as dots."""
    caption = (
        f"points of following more than {null}, with 95 % intervals over samples; grey bars: what would have been found"
        " with 80 % power; dots: single draws and seeds"
    )
    size = (9.0, 1.2 + 0.45 * len(whole))
    return Figure("differences", f"Difference to {null}", caption, partial(_forest, whole=whole, each=each), size)


def _forest(figure: matplotlib.figure.Figure, whole: Sequence[Against], each: Sequence[Against]) -> None:
    ax = figure.subplots()
    for y, a in enumerate(reversed(whole)):
        single = [100 * c.difference for c in each if _place(c) == _place(a)]
        ax.barh(y, 200 * a.detectable, left=-100 * a.detectable, height=0.7, color="#dddddd", zorder=0)
        ax.plot(single, [y] * len(single), ".", color=COLORS[a.family], alpha=0.4)
        ax.plot([100 * a.low, 100 * a.high], [y, y], color=COLORS[a.family], linewidth=2)
        ax.plot(100 * a.difference, y, "o", color=COLORS[a.family])
    ax.axvline(0, color="#444444", linewidth=1)
    ax.set_yticks(range(len(whole)), [", ".join((a.direction, a.scoring, SAID[a.family])) for a in reversed(whole)])
    ax.set_xlabel("points of following")


def _place(a: Against) -> tuple[str, str, str]:
    return a.family, a.direction, a.scoring


def planted_curve(control: Sequence[Against], null: str) -> Figure:
    """The difference to the null over the size of the planted effect."""
    caption = f"points of following more than {null} over the planted effect, with 95 % intervals over samples"
    return Figure("planted", "A planted effect made smaller", caption, partial(_curve, control=control))


def _curve(figure: matplotlib.figure.Figure, control: Sequence[Against]) -> None:
    directions = list(dict.fromkeys(a.direction for a in control))
    for ax, d in zip(np.atleast_1d(figure.subplots(1, len(directions), sharey=True)), directions, strict=True):
        for family in dict.fromkeys(a.family for a in control):
            own = sorted(
                (a for a in control if (a.direction, a.family) == (d, family)), key=lambda a: a.about["effect"]
            )
            x, y = [a.about["effect"] for a in own], np.array([[a.difference, a.low, a.high] for a in own]).T * 100
            ax.errorbar(x, y[0], np.abs(y[1:] - y[0]), color=COLORS[family], marker="o", capsize=3, label=SAID[family])
        ax.axhline(0, color="#444444", linewidth=1)
        ax.set_title(f"toward {in_words(d)}")
        ax.set_xlabel("planted effect")
    ax.legend()


def predictor_forest(told: Sequence[Telling]) -> Figure:
    """The AUROC of every way of measuring, for flips and for breaks."""
    panels = list(dict.fromkeys((t.scoring, t.direction) for t in told))
    names = list(dict.fromkeys(t.predictor for t in told))
    size = (4.0 + 2.2 * len(panels), 1.4 + 0.3 * len(names))
    caption = "AUROC with 95 % intervals, rows of one sample kept together; 0.5 tells nothing"
    draw = partial(_predictors, told=told, panels=panels, names=names)
    return Figure("predictors", "What each way of measuring tells", caption, draw, size)


def _predictors(
    figure: matplotlib.figure.Figure,
    told: Sequence[Telling],
    panels: Sequence[tuple[str, str]],
    names: Sequence[str],
) -> None:
    for ax, panel in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
        for shift, (event, color) in enumerate({"flips": "#44519e", "breaks": "#c65d6b"}.items()):
            own = [t for t in told if (t.scoring, t.direction, t.event) == (*panel, event)]
            y = [len(names) - names.index(t.predictor) - 0.25 * shift for t in own]
            ax.plot([t.auroc.value for t in own], y, MARKS[event], color=color, markersize=4, label=event)
            for at, t in zip(y, own, strict=True):
                if t.auroc.interval:
                    ax.plot(t.auroc.interval, [at, at], color=color, linewidth=1)
        ax.axvline(0.5, color="#444444", linewidth=1)
        ax.set_title(f"{panel[1]}, {panel[0]}")
        ax.set_xlabel("AUROC")
        ax.set_yticks([len(names) - i for i in range(len(names))], names)
    ax.legend()
