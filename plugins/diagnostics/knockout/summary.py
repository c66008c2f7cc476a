"""What a knockout run says: figure 2 of Instruction Anchor, its finding on instruction tokens, and the controls against position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.diagnose.instructed import LEFT_OUT
from factory.diagnose.profiles import curve, matching, mean_interval, profile, spelt, together
from factory.diagnose.summary import Figure, Finding, Summary, Table

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Knockout

Rows = Sequence[dict[str, Any]]
CLAIMS = (
    ("instruction tokens, not the last token, take up the followed modality", "compliant->instruction", "compliant->generated"),
    ("this is no matter of position: the format constraint does not", "compliant->instruction", "compliant->format"),
    ("the last token gets the decision from the instruction, not from the modalities", "instruction->generated", "cues->generated"),
)


def summarise(rows: Rows, params: Knockout.Params) -> Summary:
    followed = matching(rows, outcome="follow")
    directions = [d for d in params.directions if matching(followed, direction=d)]
    findings = [f for claim in CLAIMS for d in directions if (f := _compared(followed, d, *claim)) is not None]
    left_out = matching(rows, metric=LEFT_OUT)
    findings.append(Finding(f"{len(left_out)} prompts left out for their dictionaries", values={"left_out": len(left_out)}))
    title = f"Attention knockout (window {params.window}, {params.style}, {params.layout}, system prompt {params.system})"
    return Summary(title, tuple(findings), (_table(followed, params, directions),), tuple(_figures(followed, params, directions)))


def _compared(rows: Rows, direction: str, claim: str, strong: str, weak: str) -> Finding | None:
    """Whether cutting ``strong`` moves the decision away from the instruction more than cutting ``weak`` does, paired by sample."""
    pair = [profile(rows, metric="nssd", direction=direction, pathway=p) for p in (strong, weak)]
    if not all(p.n for p in pair):
        return None
    a, b = together(*pair)
    difference, interval = mean_interval(b.pick(slice(None)) - a.pick(slice(None)))
    values = {"direction": direction, "strong": strong, "weak": weak, "difference": difference, "ci": list(interval), "n": a.n}
    values |= {"lowest_strong": float(a.mean.min()), "lowest_weak": float(b.mean.min())}
    text = (
        f"{direction}: {claim}: cutting {strong} lowers the mean NSSD by {spelt(difference, interval)} more than cutting {weak} "
        f"(lowest layer means {a.mean.min():.3f} and {b.mean.min():.3f}, n={a.n})"
    )
    return Finding(text, interval[0] > 0, values)


def _table(rows: Rows, params: Knockout.Params, directions: Sequence[str]) -> Table:
    out = []
    for direction in directions:
        for pathway in params.pathways:
            effect, leads = (profile(rows, metric=m, direction=direction, pathway=pathway) for m in ("nssd", "leads"))
            if effect.n:
                at = int(np.argmin(effect.mean))
                mean, (low, high) = mean_interval(effect.values[:, at])
                out.append((direction, pathway, effect.n, at, mean, low, high, float(leads.values[:, at].mean())))
    columns = ("direction", "pathway", "n", "most harmful layer", "NSSD there", "low", "high", "share that still leads")
    return Table("knockout_pathways", "Pathways on prompts that follow, at the layer where cutting harms most", columns, tuple(out))


def _figures(rows: Rows, params: Knockout.Params, directions: Sequence[str]) -> list[Figure]:
    if not directions:
        return []

    def draw(figure: matplotlib.figure.Figure) -> None:
        for ax, direction in zip(np.ravel(figure.subplots(1, len(directions), sharey=True)), directions, strict=True):
            for pathway in params.pathways:
                if (effect := profile(rows, metric="nssd", direction=direction, pathway=pathway)).n:
                    curve(ax, effect, pathway.replace("->", " → "))
            ax.axhline(0, color="grey", linewidth=0.8)
            ax.set_title(f"{direction} following")
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        figure.axes[0].set_ylabel("NSSD")

    n = len({(r["sample"], r["form"], r["direction"]) for r in rows})
    caption = f"NSSD (eq. 4) of cutting a pathway in a window of {params.window} layers around each layer; mean and standard deviation over {n} prompts that follow (paper, figures 2 and 3a)."
    return [Figure("knockout", "Pathways by layer", caption, draw, (11.0, 4.2))]
