"""What the head attribution says: figure 5b, how sparse it is, and which heads both directions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.diagnose.profiles import matching, mean_interval, spelt
from factory.diagnose.summary import Figure, Finding, Summary, Table

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Heads

Rows = Sequence[dict[str, Any]]


def head_map(rows: Rows, metric: str, **facts: Any) -> np.ndarray:
    """Values [n, layers, heads] of the prompts that say ``facts``; [0, 0, 0] where there are none."""
    cells: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for row in matching(rows, metric=metric, **facts):
        cells.setdefault((row["sample"], row["form"]), {})[row["layer"], row["head"]] = row["value"]
    if not cells:
        return np.zeros((0, 0, 0))
    layers, heads = (1 + max(at) for at in zip(*next(iter(cells.values())), strict=True))
    return np.array([[[cells[key][layer, head] for head in range(heads)] for layer in range(layers)] for key in sorted(cells)])


def summarise(rows: Rows, params: Heads.Params) -> Summary:
    test = matching(rows, split="test", outcome="follow")
    maps = {d: m for d in params.directions if len(m := head_map(test, "head_margin", direction=d))}
    findings = [_sparse(m, d) for d, m in maps.items()]
    if len(maps) == 2:
        findings.append(_overlap(maps, params.top))
    causal = {d: m for d in params.directions if len(m := head_map(test, "head_nssd", direction=d))}
    findings += [_agreement(maps[d], causal[d], d) for d in maps if d in causal]
    tables = tuple(_table(m, d, params.top) for d, m in maps.items())
    figures = [_figure("head_margins", "Heads: change of the margin at the instruction tokens", "Mean of eq. 9 over the prompts that follow (paper, figure 5b and 12b)", maps)] if maps else []
    if causal:
        figures.append(_figure("head_knockout", "Heads: NSSD of silencing each at the last position", "Mean of eq. 4 over the prompts that follow; red heads support the decision (ours)", causal))
    title = f"Attention heads (k {params.k}, {params.pool}, {params.style}, {params.layout})"
    return Summary(title, tuple(findings), tables, tuple(figures))


def _sparse(m: np.ndarray, direction: str) -> Finding:
    """The tenth of the heads with the largest mean hold most of the positive attribution, and they are deep."""
    mean = m.mean(0)
    order, positive = np.argsort(-mean, axis=None), mean.clip(min=0).sum()
    few = max(1, mean.size // 10)
    top = [np.unravel_index(i, mean.shape) for i in order[:few]]
    per_prompt = np.stack([m[:, layer, head] for layer, head in top], 1).sum(1) / positive
    (share, interval), deep = mean_interval(per_prompt), float(np.mean([layer >= len(mean) / 2 for layer, _ in top]))
    text = (
        f"{direction}: few, deep heads do most: the {few} largest of {mean.size} heads hold {spelt(share, interval)} of the positive margin, "
        f"{deep:.0%} of them in the upper half (chance: {few / mean.size:.2f}; n={len(m)})"
    )
    values = {"direction": direction, "heads": few, "of": int(mean.size), "share": share, "ci": list(interval), "deep": deep, "n": len(m)}
    return Finding(text, interval[0] > 0.5 and deep > 0.5, values)


def _overlap(maps: dict[str, np.ndarray], top: int) -> Finding:
    """Heads among the largest of both directions, against what chance would give."""
    size = next(iter(maps.values())).mean(0).size
    k = min(top, max(1, size // 4))
    chosen = {d: set(np.argsort(-m.mean(0), axis=None)[:k].tolist()) for d, m in maps.items()}
    shared = len(set.intersection(*chosen.values()))
    text = f"vision and text following share {shared} of their {k} largest heads (by chance {k * k / size:.1f}; paper: 5 of 40)"
    return Finding(text, values={"shared": shared, "top": k, "by_chance": k * k / size})


def _agreement(margin: np.ndarray, causal: np.ndarray, direction: str) -> Finding:
    """Rank correlation of the attribution with the causal map's support (minus NSSD)."""
    ranks = [np.argsort(np.argsort(x, axis=None)) for x in (margin.mean(0), -causal.mean(0))]
    r = float(np.corrcoef(*ranks)[0, 1])
    return Finding(f"{direction}: rank correlation of the attribution with the harm of silencing a head at the last position: {r:.2f}", values={"direction": direction, "spearman": r})


def _table(m: np.ndarray, direction: str, top: int) -> Table:
    mean = m.mean(0)
    rows = []
    for i in np.argsort(-mean, axis=None)[: min(top, mean.size)]:
        layer, head = (int(x) for x in np.unravel_index(i, mean.shape))
        value, (low, high) = mean_interval(m[:, layer, head])
        rows.append((layer, head, value, low, high))
    return Table(f"heads_{direction}", f"Heads by their part in the margin, {direction} following (n={len(m)})", ("layer", "head", "dM", "low", "high"), tuple(rows))


def _figure(name: str, title: str, what: str, maps: dict[str, np.ndarray]) -> Figure:
    def draw(figure: matplotlib.figure.Figure) -> None:
        limit = max(float(np.abs(m.mean(0)).max()) for m in maps.values()) or 1.0
        axes = np.array(figure.subplots(1, len(maps))).ravel()
        for ax, (direction, m) in zip(axes, maps.items(), strict=True):
            colours = "RdBu_r" if name == "head_margins" else "RdBu"
            picture = ax.imshow(m.mean(0), cmap=colours, vmin=-limit, vmax=limit, aspect="auto", origin="lower")
            ax.set(xlabel="head", ylabel="layer")
            ax.set_title(f"{direction} following (n={len(m)})", fontsize=9)
            figure.colorbar(picture, ax=ax)

    return Figure(name, title, what + ".", draw, (9.0, 3.6))
