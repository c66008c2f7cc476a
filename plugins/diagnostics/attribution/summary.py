"""What the attributions say: figure 4cd and 5a of Instruction Anchor, and its findings on attention against MLP and shallow against deep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.diagnose.profiles import curve, mean_interval, profile, spelt
from factory.diagnose.summary import Figure, Finding, Summary, Table

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Attribution

Rows = Sequence[dict[str, Any]]
OUTCOMES = {"follow": "followed", "compete": "failed"}


def summarise(rows: Rows, params: Attribution.Params) -> Summary:
    present = [(d, o) for d in params.directions for o in OUTCOMES if profile(rows, metric="attention_margin", direction=d, outcome=o).n]
    findings = [_toward_instruction(rows, *case) for case in present] + [_buffer_then_arbiter(rows, d) for d, o in present if o == "follow"]
    title = f"Attention and MLP at instruction tokens (k {params.k}, {params.pool}, {params.style}, {params.layout})"
    return Summary(title, tuple(findings), (_table(rows, present),) if present else (), tuple(_figures(rows, present)))


def _toward_instruction(rows: Rows, direction: str, outcome: str) -> Finding:
    """Attention's sum over layers moves the margin toward the instruction, and more than the MLP's does."""
    attention, mlp = (profile(rows, metric=f"{part}_margin", direction=direction, outcome=outcome).values.sum(1) for part in ("attention", "mlp"))
    (a, a_ci), (m, m_ci), (_, more) = mean_interval(attention), mean_interval(mlp), mean_interval(attention - mlp)
    text = (
        f"{direction}, {OUTCOMES[outcome]}: attention moves the margin toward the instruction, more than the MLP does: "
        f"summed over layers {spelt(a, a_ci)} against {spelt(m, m_ci)} (n={len(attention)})"
    )
    values = {"direction": direction, "outcome": outcome, "attention": a, "attention_ci": list(a_ci), "mlp": m, "mlp_ci": list(m_ci), "difference_ci": list(more)}
    return Finding(text, a_ci[0] > 0 and more[0] > 0, {**values, "n": len(attention)})


def _buffer_then_arbiter(rows: Rows, direction: str) -> Finding:
    """Attention's effect on the margin per layer: none in the lower half, positive and larger in the upper half."""
    effect = profile(rows, metric="attention_margin", direction=direction, outcome="follow")
    half = effect.values.shape[1] // 2
    shallow, deep = effect.pick(slice(0, half)), effect.pick(slice(half, None))
    (s, s_ci), (d, d_ci), (_, more) = mean_interval(shallow), mean_interval(deep), mean_interval(deep - np.abs(shallow))
    text = (
        f"{direction}: shallow attention buffers, deep attention decides: its mean effect on the margin per layer is {spelt(s, s_ci)} "
        f"in layers 0 to {half - 1} and {spelt(d, d_ci)} above (n={effect.n})"
    )
    values = {"direction": direction, "shallow": s, "shallow_ci": list(s_ci), "deep": d, "deep_ci": list(d_ci), "deep_minus_absolute_shallow_ci": list(more)}
    return Finding(text, d_ci[0] > 0 and more[0] > 0, {**values, "n": effect.n})


def _table(rows: Rows, present: Sequence[tuple[str, str]]) -> Table:
    metrics = [f"{part}_{what}" for part in ("attention", "mlp") for what in ("comply", "compete", "margin")]
    out = []
    for direction, outcome in present:
        means = [profile(rows, metric=m, direction=direction, outcome=outcome).mean for m in metrics]
        out += [(direction, OUTCOMES[outcome], layer, *(float(m[layer]) for m in means)) for layer in range(len(means[0]))]
    return Table("attribution", "Mean change of belief and margin by layer", ("direction", "prompts", "layer", *metrics), tuple(out))


def _figures(rows: Rows, present: Sequence[tuple[str, str]]) -> list[Figure]:
    if not present:
        return []

    def draw_margin(figure: matplotlib.figure.Figure) -> None:
        axes = np.array(figure.subplots(1, len(present), sharey=True)).ravel()
        for ax, (direction, outcome) in zip(axes, present, strict=True):
            for part in ("attention", "mlp"):
                curve(ax, profile(rows, metric=f"{part}_margin", direction=direction, outcome=outcome), part)
            ax.axhline(0, color="grey", linewidth=0.8)
            ax.set_title(f"{direction}, {OUTCOMES[outcome]}", fontsize=9)
        axes[0].set_ylabel("change of the margin")
        axes[0].legend(fontsize=7)

    followed = [d for d, outcome in present if outcome == "follow"]

    def draw_subspaces(figure: matplotlib.figure.Figure) -> None:
        axes = np.array(figure.subplots(1, len(followed), sharey=True)).ravel()
        for ax, direction in zip(axes, followed, strict=True):
            for what, name in (("comply", "compliant"), ("compete", "competing")):
                curve(ax, profile(rows, metric=f"attention_{what}", direction=direction, outcome="follow"), name)
            ax.axhline(0, color="grey", linewidth=0.8)
            ax.set_title(f"{direction} following", fontsize=9)
        axes[0].set_ylabel("change of belief by attention")
        axes[0].legend(fontsize=7)

    figures = [Figure("margin_by_part", "What attention and MLP do to the margin", "Change of the margin f_C - f_X at the instruction tokens by each layer's attention and MLP (eq. 7, 8); mean and standard deviation (paper, figure 4c, d).", draw_margin, (11.0, 3.4))]
    if followed:
        caption = "Change of the belief in each answer at the instruction tokens by each layer's attention, prompts that follow (paper, figure 5a)."
        figures.append(Figure("attention_on_subspaces", "Attention: buffering and arbitration", caption, draw_subspaces, (9.0, 3.4)))
    return figures
