"""What the logit lens says: figure 3b (LDAR by layer), figure 4ab (the subspaces' evolution), and where the decision
stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from factory.benchmark import Records
from factory.diagnose.profiles import Profile, curve, held_out_layer, mean_of, profile, share_of, together
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.instruments.instructed import told_left_out
from plugins.diagnostics._anchor import CLAIMS

if TYPE_CHECKING:
    import matplotlib.figure

    from . import LogitLens

OUTCOMES = {"follow": "followed", "compete": "failed"}
CHANCE, DECIDED, ALIKE = 0.5, 0.95, 0.9  # the paper's numbers: sec. 3.3.3


def summarise(rows: Records, params: LogitLens.Params) -> Summary:
    directions = [d for d in params.directions if decided(rows, d).n]
    findings = [f for d in directions for f in _findings(rows, d)]
    findings.append(told_left_out(rows))
    title = f"Logit lens at instruction tokens (k {params.k}, {params.pool}, {params.style}, {params.layout})"
    return Summary(
        title, tuple(findings), tuple(_table(rows, d) for d in directions), tuple(_figures(rows, directions)), CLAIMS
    )


def margins(rows: Records, direction: str, outcome: str) -> Profile:
    """f_C - f_X of the prompts with an outcome."""
    f_C, f_X = together(
        *(profile(rows, metric=m, direction=direction, outcome=outcome) for m in ("f_comply", "f_compete"))
    )
    return Profile(f_C.keys, f_C.values - f_X.values)


def decided(rows: Records, direction: str) -> Profile:
    """1 where the belief agrees with the answer (eq. 6), on prompts that followed or failed; empty without such."""
    followed, failed = (margins(rows, direction, outcome) for outcome in OUTCOMES)
    parts = [p for p in (Profile(followed.keys, followed.values > 0), Profile(failed.keys, failed.values < 0)) if p.n]
    if not parts:
        return Profile([], np.zeros((0, 0)))
    return Profile([key for p in parts for key in p.keys], np.concatenate([p.values for p in parts]).astype(float))


def _findings(rows: Records, direction: str) -> list[Finding]:
    """LDAR in the first layer and where it is best, the two positions' agreement there; that layer is chosen on the
    other samples.
    """
    ldar, alike = decided(rows, direction), profile(rows, metric="synchronised", direction=direction)
    best = held_out_layer(ldar, np.argmax)
    first, deep, rise = (
        share_of(ldar.values[:, 0], ldar.keys, CHANCE),
        share_of(best, ldar.keys, CHANCE),
        mean_of(best - ldar.values[:, 0], ldar.keys),
    )
    text = (
        f"{direction}: the decision stands at the instruction tokens in the end: LDAR goes from {first} in the first"
        f" layer to {deep} where it is highest (needs 0.4 to 0.6, then {DECIDED} or more; n={ldar.n})"
    )
    near_chance, decides = abs(first.mean - CHANCE) <= 0.1, deep.mean >= DECIDED and deep.interval[0] > CHANCE
    values = {"direction": direction, **first.facts("first"), **deep.facts("deep"), **rise.facts("rise"), "n": ldar.n}
    findings = [
        Finding(
            text, near_chance and decides and rise.interval[0] > 0, values, max(deep.p, rise.p), "anchor 2/crystallised"
        )
    ]
    peak = int(np.argmax(ldar.mean))
    same = share_of(alike.values[:, peak], alike.keys, CHANCE)
    text = (
        f"{direction}: instruction tokens and the last token lean the same way in layer {peak}, where LDAR is highest:"
        f" {same} of prompts (needs {ALIKE} or more; n={alike.n})"
    )
    values = {"direction": direction, **same.facts("share"), "layer": peak, "n": alike.n}
    findings.append(
        Finding(text, same.mean >= ALIKE and same.interval[0] > CHANCE, values, same.p, "anchor 2/synchronised")
    )
    return findings


def _table(rows: Records, direction: str) -> Table:
    ldar, alike = decided(rows, direction), profile(rows, metric="synchronised", direction=direction)
    out = []
    for layer in range(ldar.values.shape[1]):
        at = share_of(ldar.values[:, layer], ldar.keys)
        out.append((layer, ldar.n, at.mean, *at.interval, float(alike.mean[layer])))
    return Table(
        f"ldar_{direction}",
        f"LDAR by layer, {direction} instruction",
        ("layer", "n", "LDAR", "low", "high", "synchronised"),
        tuple(out),
    )


def _figures(rows: Records, directions: Sequence[str]) -> list[Figure]:
    if not directions:
        return []

    def draw_ldar(figure: matplotlib.figure.Figure) -> None:
        ax = figure.subplots()
        for direction in directions:
            ldar, alike = decided(rows, direction), profile(rows, metric="synchronised", direction=direction)
            line = ax.plot(ldar.mean, marker="o", label=f"{direction}: LDAR")[0]
            ax.plot(
                alike.mean, linestyle="--", color=line.get_color(), label=f"{direction}: agrees with the last token"
            )
        ax.axhline(0.5, color="grey", linewidth=0.8)
        ax.set(xlabel="layer", ylabel="share of prompts", ylim=(0, 1.02))
        ax.legend(fontsize=7)

    def draw_states(figure: matplotlib.figure.Figure) -> None:
        axes = np.array(figure.subplots(1, 2 * len(directions), sharey=True)).ravel()
        for ax, (direction, outcome) in zip(axes, ((d, o) for d in directions for o in OUTCOMES), strict=True):
            for metric, name, line in (("f_comply", "compliant", "-"), ("f_compete", "competing", "--")):
                if (f := profile(rows, metric=metric, direction=direction, outcome=outcome)).n:
                    curve(ax, f, name, linestyle=line)
            ax.set_title(f"{direction}, {OUTCOMES[outcome]} (n={f.n})", fontsize=9)
        axes[0].set_ylabel("f_S (logit)")
        if axes[0].lines:
            axes[0].legend(fontsize=7)

    caption = (
        "Share of prompts whose belief at the instruction tokens agrees with their answer (eq. 6; paper, figure 3b),"
        " and how often the last token leans the same way."
    )
    states = (
        "Belief in the two answers at the instruction tokens by layer (eq. 5), mean and standard deviation; prompts"
        " that follow and prompts that give the other side's answer (paper, figure 4a, b)."
    )
    return [
        Figure("ldar", "Latent decision alignment rate", caption, draw_ldar, (6.5, 4.0)),
        Figure("subspaces", "The two subspaces by layer", states, draw_states, (11.0, 3.4)),
    ]
