"""What the head attribution says: figure 5b, how sparse it is, and which heads both directions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.benchmark import Records
from factory.diagnose.profiles import Profile, matching, mean_of
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.instruments.heads import few
from factory.statistics.association import spearman
from plugins.diagnostics._anchor import CLAIMS

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Heads

MOST = 0.5


def head_map(rows: Records, metric: str, **facts: Any) -> Profile:
    """Values [n, layers, heads] of the prompts that say ``facts``."""
    cells: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for row in matching(rows, metric=metric, **facts):
        cells.setdefault((row["sample"], row["form"]), {})[row["layer"], row["head"]] = row["value"]
    if not cells:
        return Profile([], np.zeros((0, 0, 0)))
    layers, heads = (1 + max(at) for at in zip(*next(iter(cells.values())), strict=True))
    keys = sorted(cells)
    return Profile(
        keys,
        np.array([[[cells[key][layer, head] for head in range(heads)] for layer in range(layers)] for key in keys]),
    )


def summarise(rows: Records, params: Heads.Params) -> Summary:
    test = matching(rows, split="test", outcome="follow")
    maps = {d: m for d in params.directions if (m := head_map(test, "head_margin", direction=d)).n}
    learnt = {
        d: m for d in maps if (m := head_map(rows, "head_margin", direction=d, split="train", outcome="follow")).n
    }
    findings = [_sparse(learnt[d].mean, maps[d], d) for d in learnt]
    if len(maps) == 2:
        findings.append(_overlap(maps, params.top))
    causal = {d: m for d in params.directions if (m := head_map(test, "head_nssd", direction=d)).n}
    findings += [_agreement(maps[d], causal[d], d) for d in maps if d in causal]
    tables = tuple(_table(m, d, params.top) for d, m in maps.items())
    figures = (
        [
            _figure(
                "head_margins",
                "Heads: change of the margin at the instruction tokens",
                "Mean of eq. 9 over the prompts that follow (paper, figure 5b and 12b)",
                maps,
            )
        ]
        if maps
        else []
    )
    if causal:
        figures.append(
            _figure(
                "head_knockout",
                "Heads: NSSD of silencing each at the last position",
                "Mean of eq. 4 over the prompts that follow; red heads support the decision (ours)",
                causal,
            )
        )
    title = f"Attention heads (k {params.k}, {params.pool}, {params.style}, {params.layout})"
    return Summary(title, tuple(findings), tables, tuple(figures), CLAIMS)


def _sparse(learnt: np.ndarray, m: Profile, direction: str) -> Finding:
    """The twentieth of the heads with the largest mean on training prompts hold most of the positive attribution of the
    test prompts.
    """
    k = few(learnt.size)
    top = [np.unravel_index(i, learnt.shape) for i in np.argsort(-learnt, axis=None)[:k]]
    positive, chance = m.mean.clip(min=0).sum(), k / learnt.size
    held = np.stack([m.values[:, layer, head] for layer, head in top], 1).sum(1) / (positive or np.inf)
    part, above = mean_of(held, m.keys), mean_of(held - chance, m.keys)
    deep = float(np.mean([layer >= len(learnt) / 2 for layer, _ in top]))
    text = (
        f"{direction}: few, deep heads do most: the {k} largest of {learnt.size} heads on training prompts hold {part}"
        f" of the positive margin of test prompts, {deep:.0%} of them in the upper half (needs {MOST} or more, above"
        f" the chance of {chance:.2f}, and most of them deep; n={m.n})"
    )
    values = {
        "direction": direction,
        "heads": k,
        "of": int(learnt.size),
        **part.facts("share"),
        "chance": chance,
        "deep": deep,
        "n": m.n,
    }
    return Finding(text, part.mean >= MOST and above.interval[0] > 0 and deep > 0.5, values, above.p, "anchor 5/sparse")


def _overlap(maps: Mapping[Any, Profile], top: int) -> Finding:
    """Heads among the largest of both directions, against what chance would give."""
    size = next(iter(maps.values())).mean.size
    k = min(top, max(1, size // 4))
    chosen = {d: set(np.argsort(-m.mean, axis=None)[:k].tolist()) for d, m in maps.items()}
    shared = len(set.intersection(*chosen.values()))
    text = (
        f"{' and '.join(maps)} following share {shared} of their {k} largest heads (by chance {k * k / size:.1f};"
        " paper: 5 of 40)"
    )
    return Finding(text, values={"shared": shared, "top": k, "by_chance": k * k / size})


def _agreement(margin: Profile, causal: Profile, direction: str) -> Finding:
    """Rank correlation of the attribution with the causal map's support (minus NSSD)."""
    r = spearman(margin.mean.ravel(), -causal.mean.ravel())
    return Finding(
        f"{direction}: rank correlation of the attribution with the harm of silencing a head at the last position:"
        f" {r:.2f}",
        values={"direction": direction, "spearman": r},
    )


def _table(m: Profile, direction: str, top: int) -> Table:
    rows = []
    for i in np.argsort(-m.mean, axis=None)[: min(top, m.mean.size)]:
        layer, head = (int(x) for x in np.unravel_index(i, m.mean.shape))
        value = mean_of(m.values[:, layer, head], m.keys)
        rows.append((layer, head, value.mean, *value.interval))
    return Table(
        f"heads_{direction}",
        f"Heads by their part in the margin, {direction} following (n={m.n})",
        ("layer", "head", "dM", "low", "high"),
        tuple(rows),
    )


def _figure(name: str, title: str, what: str, maps: Mapping[Any, Profile]) -> Figure:
    def draw(figure: matplotlib.figure.Figure) -> None:
        limit = max(float(np.abs(m.mean).max()) for m in maps.values()) or 1.0
        axes = np.array(figure.subplots(1, len(maps))).ravel()
        for ax, (direction, m) in zip(axes, maps.items(), strict=True):
            colours = "RdBu_r" if name == "head_margins" else "RdBu"
            picture = ax.imshow(m.mean, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", origin="lower")
            ax.grid(False)
            ax.set(xlabel="head", ylabel="layer")
            ax.set_title(f"{direction} following (n={m.n})", fontsize=9)
            figure.colorbar(picture, ax=ax)

    return Figure(name, title, what + ".", draw, (9.0, 3.6))
