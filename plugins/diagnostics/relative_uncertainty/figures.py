"""Figures of relative uncertainty: the following curve, and which answer each layer favours."""

from __future__ import annotations

from typing import Any

import numpy as np

from factory.data.sources import Sources
from factory.diagnose.summary import Figure, Table

from .cases import Cases
from .curve import bins, isotonic, logistic, sigmoid


def curve_figure(c: Cases, table: Table, balance: float, sources: Sources) -> Figure:
    """The following curve: bins as in ``table``, both fits, the balance point."""
    (a, b), (at, steps) = logistic(c.x, c.text), isotonic(c.x, c.text)

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        grid = np.linspace(c.x.min(), c.x.max(), 200)
        ax.plot(grid, sigmoid(a + b * grid), color="#0072B2", label="logistic fit")
        ax.step(at, steps, where="mid", color="#999933", linewidth=1.2, label="isotonic fit")
        bins = np.array([[r[0], *r[2:5]] for r in table.rows], dtype=float)  # centre, share, low, high; NaN for none
        x, y, low, high = bins.T
        spread = np.nan_to_num([y - low, high - y])
        ax.errorbar(x, y, yerr=np.maximum(spread, 0), fmt="o", color="#D55E00", label="bins of equal count")
        ax.axhline(0.5, color="#888888", linewidth=0.8)
        if np.isfinite(balance):
            ax.axvline(balance, color="#888888", linestyle="--", label=f"balance point {balance:.2f}")
        ax.set_xlabel(f"relative uncertainty ({_less('text', 'image', sources)})")
        ax.set_ylabel(f"P(follow {sources.second.name})")
        ax.set_ylim(-0.03, 1.03)
        ax.legend()

    caption = (
        f"Share that follows {sources.second.said} against relative uncertainty; {len(c)} prompts answered right from"
        f" either {'modality' if sources.pictured else 'text'} alone; bars: bootstrap 95 % intervals."
    )
    return Figure("following_curve", "The following curve", caption, draw, (7.0, 4.2))


def _less(second: str, first: str, sources: Sources) -> str:
    """The second source less the first, as a picture and its text are called or by their names."""
    return f"{second} less {first}" if sources.pictured else " less ".join(reversed(sources.names))


def map_figure(c: Cases, n_bins: int, sources: Sources) -> Figure:
    """Logit differences, layers by bins of relative uncertainty."""
    number = bins(c.x, n_bins)
    grid = np.array([np.nanmean(c.difference[number == b], 0) for b in range(number.max() + 1)]).T

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        limit = float(np.nanmax(np.abs(grid)))
        image = ax.imshow(grid, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set_xticks(range(grid.shape[1]), [f"{c.x[number == b].mean():.2f}" for b in range(grid.shape[1])])
        ax.set_xlabel("mean relative uncertainty of the bin")
        ax.set_ylabel("layer")
        ax.grid(False)
        figure.colorbar(image, ax=ax, label=f"logit of {_less('text', 'vision', sources)} answer")

    caption = (
        f"Mean logit difference of the two answers, read through the output norm after every layer; {len(c)} prompts."
    )
    return Figure("logit_differences", "Which answer each layer favours", caption, draw, (7.0, 4.2))
