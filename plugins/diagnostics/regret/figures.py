"""The figures: probes and scatter by layer, early signs, units and their groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.diagnose.profiles import matching
from factory.diagnose.summary import Figure

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
LABEL = {
    "stays": "against answers that stay",
    "first": "against the first answer",
    "same_word": "same word, not taken back",
}
SOURCE = {"probe": "probe", "words": "words so far", "logit": "odds of a word of regret", "keyword": "the word itself"}


def _line(ax: Axes, x: Sequence[float], rows: Rows, label: str) -> None:
    y = np.array([r["value"] for r in rows])
    low, high = (np.array([np.nan if r[k] is None else r[k] for r in rows], float) for k in ("low", "high"))
    line = ax.plot(x, y, marker="o", markersize=3, label=label)[0]
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def layers_figure(whole: Rows) -> Figure | None:
    """Probes and the scatter ratio by layer."""
    curve = matching(whole, metric="scatter_ratio")
    if not curve:
        return None

    def draw(figure: matplotlib.figure.Figure) -> None:
        left, right = figure.subplots(1, 2)
        for contrast, label in LABEL.items():
            if rows := matching(whole, metric="probe_auroc", contrast=contrast):
                _line(left, [r["layer"] for r in rows], rows, label)
        left.axhline(0.5, color="0.7", linewidth=0.8)
        left.set(xlabel="block", ylabel="AUROC at the word, held out by item")
        left.legend(fontsize=7)
        _line(right, [r["layer"] for r in curve], curve, "scatter ratio")
        right.plot([r["layer"] for r in curve], [r["floor"] for r in curve], "--", color="0.6", label="labels shuffled")
        right.set(xlabel="block", ylabel="log between / within")
        right.legend(fontsize=7)

    caption = (
        "Where regret can be told: probes (left) and how far the two classes lie apart (right), by block; 95 %"
        " intervals over items."
    )
    return Figure("layers", "Regret by block", caption, draw, (10.0, 3.8))


def early_figure(whole: Rows) -> Figure | None:
    """AUROC by tokens from the word."""
    rows = matching(whole, metric="early_auroc")
    if not rows:
        return None
    grid = matching(whole, metric="early_by_layer")

    def draw(figure: matplotlib.figure.Figure) -> None:
        left, right = figure.subplots(1, 2)
        for source, label in SOURCE.items():
            own = sorted(matching(rows, source=source), key=lambda r: -r["before"])
            _line(left, [-r["before"] for r in own], own, label)
        left.axhline(0.5, color="0.7", linewidth=0.8)
        left.set(xlabel="tokens from the word of regret", ylabel="AUROC")
        left.legend(fontsize=7)
        depth, before = (max(r[k] for r in grid) + 1 for k in ("layer", "before"))
        values = np.full((depth, before), np.nan)
        for r in grid:
            values[r["layer"], before - 1 - r["before"]] = r["value"]
        shown = right.imshow(
            values, origin="lower", aspect="auto", vmin=0.5, vmax=1.0, extent=(0.5 - before, 0.5, -0.5, depth - 0.5)
        )
        right.set(xlabel="tokens from the word of regret", ylabel="block")
        figure.colorbar(shown, ax=right, label="AUROC of the probe")

    caption = (
        "How long before the word of regret it can be told whether the answer is taken back; 95 % intervals over items."
    )
    return Figure("early", "Regret before it is said", caption, draw, (10.0, 3.8))


def units_figure(whole: Rows, tau: float) -> Figure | None:
    """RDS of all units, and GIC by tau."""
    scores = [r["value"] for r in matching(whole, metric="rds")]
    if not scores:
        return None
    gic = [r for r in matching(whole, metric="gic", group="RegretD")]

    def draw(figure: matplotlib.figure.Figure) -> None:
        left, right = figure.subplots(1, 2)
        mu, sigma = float(np.mean(scores)), float(np.std(scores))
        left.hist(np.clip(scores, mu - 5 * sigma, mu + 5 * sigma), bins=40)
        for edge in (mu - tau * sigma, mu + tau * sigma):
            left.axvline(edge, color="#444444", linewidth=0.8)
        left.set(xlabel="RDS", ylabel="units")
        for value in dict.fromkeys(r["deactivated"] for r in gic):
            own = matching(gic, deactivated=value)
            line = right.plot(
                [r["tau"] for r in own], [r["value"] for r in own], marker="o", markersize=3, label=f"set to {value}"
            )[0]
            mean, sd = (np.array([r[k] for r in own]) for k in ("random", "random_sd"))
            right.fill_between(
                [r["tau"] for r in own], mean - sd, mean + sd, color=line.get_color(), alpha=0.15, linewidth=0
            )
        right.set(xlabel="tau", ylabel="GIC of RegretD", xscale="log")
        right.legend(fontsize=7)

    caption = (
        "RDS of every unit with the groups' bounds (left); GIC of RegretD, bands: random groups of equal size, mean and"
        " sd (right)."
    )
    return Figure("units", "Units of regret", caption, draw, (10.0, 3.8))
