"""A circuit drawn, and its curve of faithfulness."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.diagnose.profiles import matching
from factory.diagnose.summary import Figure
from factory.instruments.circuit.edits import GROUPS

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
COLOURS = dict(zip(GROUPS, ("#44519e", "#c65d6b", "#d9a441", "#3c8d5f", "#8a8a8a"), strict=True))
NODE = re.compile(r"(?P<kind>input|added|a|m|logits)(?P<layer>\d*)(?:\.(?P<part>[hqkv])(?P<index>\d+))?")


def place(name: str, depth: int, heads: int) -> tuple[float, float]:
    """Where a node stands: blocks from below, heads beside each other, MLPs right of them."""
    found = NODE.fullmatch(name)
    assert found is not None, f"{name} is no node"
    kind, layer = found["kind"], int(found["layer"] or 0)
    if kind == "logits":
        return heads / 2, 2.0 * depth
    if kind in ("input", "added"):
        return (heads / 2, -1.0) if kind == "input" else (-1.0, 2.0 * layer - 0.5)
    return (heads + 0.5, 2.0 * layer + 1) if kind == "m" else (float(found["index"]), 2.0 * layer)


def graph_figure(name: str, rows: Rows, edges: Rows, title: str) -> Figure:
    """Nodes by block; an edge as wide as its score is large, in the colour of where most of it is read."""
    every = matching(rows, metric="circuit_head")
    depth, heads = 1 + max(r["layer"] for r in every), 1 + max(r["head"] for r in every)
    roles: dict[str, dict[str, float]] = {r["edge"]: {} for r in edges}
    for g in GROUPS:
        for r in matching(rows, metric="circuit", role=g):
            roles[r["edge"]][g] = abs(r["value"])
    largest = max(abs(r["value"]) for r in edges) or 1.0
    group = heads // max(1, len({n for n in _of_part(rows, "k")}))

    def spot(end: str) -> tuple[float, float]:
        x, y = place(end, depth, heads)
        return (x * group + (group - 1) / 2, y) if re.search(r"\.[kv]\d", end) else (x, y)

    def draw(figure: matplotlib.figure.Figure) -> None:
        ax = figure.subplots()
        for i in range(depth):
            ax.scatter(range(heads), [2.0 * i] * heads, s=60, facecolors="none", edgecolors="#999999", linewidths=0.8)
            ax.scatter([heads + 0.5], [2.0 * i + 1], s=60, marker="s", facecolors="none", edgecolors="#999999")
        for x, y, text in ((heads / 2, -1.0, "input"), (heads / 2, 2.0 * depth, "logits")):
            ax.annotate(text, (x, y), ha="center", va="center", fontsize=8)
        for r in edges:
            a, b = (spot(end) for end in r["edge"].split("->"))
            part = re.search(r"\.([qkv])\d+$", r["edge"])
            where = max(roles[r["edge"]], key=roles[r["edge"]].__getitem__, default="other")
            ax.annotate(
                "",
                b,
                a,
                arrowprops={
                    "arrowstyle": "->",
                    "color": COLOURS[where],
                    "linewidth": 0.5 + 4 * abs(r["value"]) / largest,
                    "alpha": 0.8,
                    "linestyle": {"q": "--", "k": ":"}.get(part[1] if part else "", "-"),
                    "connectionstyle": "arc3,rad=0.08",
                },
            )
        for g, colour in COLOURS.items():
            ax.plot([], [], color=colour, label=f"read at: {g}")
        _finish(ax, depth, heads)

    caption = (
        f"{len(edges)} edges, as wide as their scores; circles are heads, squares MLPs, one row a block. A dashed edge"
        " enters a head's queries, a dotted one its keys, another its values."
    )
    return Figure(name, title, caption, draw, (9.0, 2.0 + 0.75 * depth))


def _of_part(rows: Rows, part: str) -> list[int]:
    """The indices of a part's heads that any told edge names."""
    pattern = re.compile(rf"->a\d+\.{part}(\d+)$")
    found = (pattern.search(r["edge"]) for r in matching(rows, metric="edge", role="all"))
    return [int(m[1]) for m in found if m]


def _finish(ax: Axes, depth: int, heads: int) -> None:
    ax.set(xlim=(-1.5, heads + 1.5), ylim=(-1.6, 2.0 * depth + 0.6), xticks=range(heads), xlabel="head")
    ax.set_yticks([2.0 * i for i in range(depth)], [f"block {i}" for i in range(depth)])
    ax.grid(False)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def curve_figure(name: str, rows: Rows) -> Figure:
    """f over the share of edges, of each method's ranking and of random circuits."""
    found = matching(rows, metric="faithfulness")

    def draw(figure: matplotlib.figure.Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for ax, ranked in zip(axes, ("cpr", "cmd"), strict=True):
            for method in dict.fromkeys(r["method"] for r in found if r["method"] != "random"):
                points = sorted((r["share"], r["value"]) for r in matching(found, method=method, ranked=ranked))
                ax.plot(*zip(*points, strict=True), marker="o", markersize=3, label=method)
            shares = sorted({r["share"] for r in found})
            drawn = [[r["value"] for r in matching(found, method="random", share=s)] for s in shares]
            if all(drawn):
                ax.plot(shares, [np.mean(d) for d in drawn], color="#8a8a8a", linestyle="--", label="random")
                ax.fill_between(shares, [min(d) for d in drawn], [max(d) for d in drawn], color="#8a8a8a", alpha=0.2)
            ax.axhline(1.0, color="#bbbbbb", linewidth=0.8)
            ax.set(xscale="log", xlabel="share of edges")
            ax.set_title({"cpr": "largest scores first", "cmd": "largest sizes first"}[ranked], fontsize=9)
        axes[0].set_ylabel("faithfulness")
        axes[1].legend(fontsize=8)

    caption = (
        "Share of the difference that a circuit keeps by itself, on samples that it was not found on; the band spans"
        " random draws."
    )
    return Figure(name, "Faithfulness over the size of the circuit", caption, draw, (10.0, 3.6))
