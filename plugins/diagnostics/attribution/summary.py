"""What the attributions say: figure 4cd and 5a of Instruction Anchor, and its findings on attention against MLP and
shallow against deep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.benchmark import Records
from factory.diagnose.profiles import curve, mean_of, profile
from factory.diagnose.summary import Figure, Finding, Summary, Table
from plugins.diagnostics._anchor import CLAIMS

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Attribution

OUTCOMES = {"follow": "followed", "compete": "failed"}
# Share of layers in which the mean is positive; this and the next number are ours, the paper has figures alone.
CONSISTENT = 0.75
NEAR_ZERO = 0.25


def summarise(rows: Records, params: Attribution.Params) -> Summary:
    present = [
        (d, o)
        for d in params.directions
        for o in OUTCOMES
        if profile(rows, metric="attention_margin", direction=d, outcome=o).n
    ]
    findings = [_toward_instruction(rows, *case) for case in present] + [
        _buffer_then_arbiter(rows, d) for d, o in present if o == "follow"
    ]
    title = f"Attention and MLP at instruction tokens (k {params.k}, {params.pool}, {params.style}, {params.layout})"
    tables = (_table(rows, present),) if present else ()
    return Summary(title, tuple(findings), tables, tuple(_figures(rows, present)), CLAIMS)


def _toward_instruction(rows: Records, direction: str, outcome: str) -> Finding:
    """Attention moves the margin toward the instruction in most layers and in sum; the MLP does so in fewer layers and
    less.
    """
    attention, mlp = (
        profile(rows, metric=f"{part}_margin", direction=direction, outcome=outcome) for part in ("attention", "mlp")
    )
    layers = {name: float((p.mean > 0).mean()) for name, p in (("attention", attention), ("mlp", mlp))}
    sums = [p.values.sum(1) for p in (attention, mlp)]
    a, m, more = (mean_of(values, attention.keys) for values in (*sums, sums[0] - sums[1]))
    text = (
        f"{direction}, {OUTCOMES[outcome]}: attention moves the margin toward the instruction, more than the MLP does:"
        f" in {layers['attention']:.0%} of layers against {layers['mlp']:.0%}, summed over layers {a} against {m}"
        f" (needs {CONSISTENT:.0%} of layers and more of them than the MLP, a positive sum and a larger one; n={a.n})"
    )
    values = {
        "direction": direction,
        "outcome": outcome,
        **a.facts("attention"),
        **m.facts("mlp"),
        **more.facts("difference"),
        "positive_layers": layers,
        "n": a.n,
    }
    holds = (
        layers["attention"] >= CONSISTENT
        and layers["attention"] > layers["mlp"]
        and a.interval[0] > 0
        and more.interval[0] > 0
    )
    return Finding(text, holds, values, max(a.p, more.p), f"anchor 3/{OUTCOMES[outcome]}")


def _buffer_then_arbiter(rows: Records, direction: str) -> Finding:
    """Attention's effect on the margin per layer: positive in the upper half, and at most a quarter of that, either
    way, in the lower half.
    """
    effect = profile(rows, metric="attention_margin", direction=direction, outcome="follow")
    half = effect.values.shape[1] // 2
    shallow, deep = effect.pick(slice(0, half)), effect.pick(slice(half, None))
    s, d = mean_of(shallow, effect.keys), mean_of(deep, effect.keys)
    beyond = [
        mean_of(NEAR_ZERO * deep + sign * shallow, effect.keys) for sign in (1, -1)
    ]  # |mean shallow| < NEAR_ZERO mean deep
    text = (
        f"{direction}: shallow attention buffers, deep attention decides: its mean effect on the margin per layer is"
        f" {s} in layers 0 to {half - 1} and {d} above (needs a positive one above, below less than {NEAR_ZERO:g} of"
        f" it; n={d.n})"
    )
    values = {"direction": direction, **s.facts("shallow"), **d.facts("deep"), "n": d.n}
    return Finding(
        text,
        d.interval[0] > 0 and all(e.interval[0] > 0 for e in beyond),
        values,
        max(d.p, *(e.p for e in beyond)),
        "anchor 4/buffer",
    )


def _table(rows: Records, present: Sequence[tuple[str, str]]) -> Table:
    metrics = [f"{part}_{what}" for part in ("attention", "mlp") for what in ("comply", "compete", "margin")]
    out: list[tuple[Any, ...]] = []
    for direction, outcome in present:
        means = [profile(rows, metric=m, direction=direction, outcome=outcome).mean for m in metrics]
        out += [
            (direction, OUTCOMES[outcome], layer, *(float(m[layer]) for m in means)) for layer in range(len(means[0]))
        ]
    return Table(
        "attribution",
        "Mean change of belief and margin by layer",
        ("direction", "prompts", "layer", *metrics),
        tuple(out),
    )


def _figures(rows: Records, present: Sequence[tuple[str, str]]) -> list[Figure]:
    if not present:
        return []

    def draw_margin(figure: matplotlib.figure.Figure) -> None:
        axes = np.array(figure.subplots(1, len(present), sharey=True)).ravel()
        for ax, (direction, outcome) in zip(axes, present, strict=True):
            for part in ("attention", "mlp"):
                curve(
                    ax,
                    of := profile(rows, metric=f"{part}_margin", direction=direction, outcome=outcome),
                    {"mlp": "MLP"}.get(part, part),
                )
            ax.axhline(0, color="grey", linewidth=0.8)
            ax.set_title(f"{direction}, {OUTCOMES[outcome]} (n={of.n})", fontsize=9)
        axes[0].set_ylabel("change of the margin")
        axes[0].legend(fontsize=7)

    followed = [d for d, outcome in present if outcome == "follow"]

    def draw_subspaces(figure: matplotlib.figure.Figure) -> None:
        axes = np.array(figure.subplots(1, len(followed), sharey=True)).ravel()
        for ax, direction in zip(axes, followed, strict=True):
            for what, name, line in (("comply", "compliant", "-"), ("compete", "competing", "--")):
                curve(
                    ax,
                    of := profile(rows, metric=f"attention_{what}", direction=direction, outcome="follow"),
                    name,
                    linestyle=line,
                )
            ax.axhline(0, color="grey", linewidth=0.8)
            ax.set_title(f"{direction} following (n={of.n})", fontsize=9)
        axes[0].set_ylabel("change of belief by attention")
        axes[0].legend(fontsize=7)

    figures = [
        Figure(
            "margin_by_part",
            "What attention and MLP do to the margin",
            "Change of the margin f_C - f_X at the instruction tokens by each layer's attention and MLP (eq. 7, 8);"
            " mean and standard deviation (paper, figure 4c, d).",
            draw_margin,
            (11.0, 3.4),
        )
    ]
    if followed:
        caption = (
            "Change of the belief in each answer at the instruction tokens by each layer's attention, prompts that"
            " follow (paper, figure 5a)."
        )
        figures.append(
            Figure(
                "attention_on_subspaces", "Attention: buffering and arbitration", caption, draw_subspaces, (9.0, 3.4)
            )
        )
    return figures
