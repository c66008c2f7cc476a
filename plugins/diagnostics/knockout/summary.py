"""What a knockout run says: figure 2 of Instruction Anchor, its finding on instruction tokens, and the controls against
position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from factory.benchmark import Records
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.diagnose.profiles import curve, held_out_layer, matching, mean_of, profile, together
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.instruments.instructed import told_left_out
from factory.instruments.pathways import arrowed
from factory.plain import number_of
from plugins.diagnostics._anchor import CLAIMS

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Knockout

PRONOUNCED = -0.1  # nats: what it takes to go from 0.9 to 0.7 of the mass; ours, the paper gives no number
MARGINAL = 0.5  # and a weak pathway does less than this part of what a strong one does
LINES = {"instruction": "-", "generated": "--"}


def parts(sources: Sources) -> list[tuple[str | None, tuple[str, ...], str, str, str]]:
    """Part of a claim, directions, what is said, the strong pathway and the weak one."""
    both, first = sources.names, sources.first.name
    one, all_ = ("modality", "modalities") if sources.pictured else ("text", "texts")
    across, at_large = ("image->context", "text") if sources.pictured else ("context_a->context_b", "the other text's")
    into = "compliant->instruction"
    return [
        (
            "anchor 1/relay",
            both,
            f"instruction tokens, not the last token, take up the followed {one}",
            into,
            "compliant->generated",
        ),
        ("anchor 1/context", (first,), f"nor do {at_large} tokens{' at large' * sources.pictured}", into, across),
        (
            "anchor 1/position",
            both,
            "this is no matter of position: the format constraint does not",
            into,
            "compliant->format",
        ),
        (
            None,
            both,
            f"the last token gets the decision from the instruction, not from the {all_}",
            "instruction->generated",
            "cues->generated",
        ),
    ]


def summarise(rows: Records, params: Knockout.Params, sources: Sources = PICTURE_AND_TEXT) -> Summary:
    followed = matching(rows, outcome="follow")
    directions = [d for d in params.directions if matching(followed, direction=d)]
    findings = [
        f
        for part, ways, *claim in parts(sources)
        for d in directions
        if d in ways and (f := _compared(followed, d, part, *claim)) is not None
    ]
    findings.append(told_left_out(rows))
    title = (
        f"Attention knockout (window {params.window}, {params.style}, {params.layout}, system prompt {params.system})"
    )
    return Summary(
        title,
        tuple(findings),
        (_table(followed, params, directions),),
        tuple(_figures(followed, params, directions)),
        CLAIMS,
    )


def _compared(rows: Records, direction: str, part: str | None, claim: str, strong: str, weak: str) -> Finding | None:
    """Whether cutting ``strong`` moves the decision away from the instruction, and cutting ``weak`` does little beside
    that; each at its most harmful layer, chosen on the other samples, and paired by sample."""
    pair = [profile(rows, metric="nssd", direction=direction, pathway=p) for p in (strong, weak)]
    if not all(p.n for p in pair):
        return None
    pair = together(*pair)
    (s, w), keys = map(held_out_layer, pair), pair[0].keys
    of_strong, of_weak = mean_of(s, keys), mean_of(w, keys)
    beyond = [mean_of(sign * w - MARGINAL * s, keys) for sign in (1, -1)]  # |mean w| < MARGINAL |mean s|
    text = (
        f"{direction}: {claim}: NSSD {of_strong} of cutting {arrowed(strong)} against {of_weak} of cutting"
        f" {arrowed(weak)} (needs {PRONOUNCED} or less, and the other below {MARGINAL:g} of it; n={of_strong.n})"
    )
    values = {
        "direction": direction,
        "strong": strong,
        "weak": weak,
        **of_strong.facts("nssd_strong"),
        **of_weak.facts("nssd_weak"),
        "n": of_strong.n,
    }
    return Finding(
        text,
        of_strong.mean <= PRONOUNCED and all(e.interval[0] > 0 for e in beyond),
        values,
        max(e.p for e in beyond),
        part,
    )


def _table(rows: Records, params: Knockout.Params, directions: Sequence[str]) -> Table:
    out = []
    for direction in directions:
        for pathway in params.pathways or ():
            effect, leads = (profile(rows, metric=m, direction=direction, pathway=pathway) for m in ("nssd", "leads"))
            if effect.n:
                at = int(np.argmin(effect.mean))
                there = mean_of(effect.values[:, at], effect.keys)
                out.append(
                    (
                        direction,
                        arrowed(pathway),
                        effect.n,
                        at,
                        there.mean,
                        *there.interval,
                        float(leads.values[:, at].mean()),
                    )
                )
    columns = ("direction", "pathway", "n", "most harmful layer", "NSSD there", "low", "high", "share that still leads")
    return Table(
        "knockout_pathways",
        "Pathways on prompts that follow, at the layer where cutting harms most",
        columns,
        tuple(out),
    )


def _figures(rows: Records, params: Knockout.Params, directions: Sequence[str]) -> list[Figure]:
    if not directions:
        return []

    def draw(figure: matplotlib.figure.Figure) -> None:
        for ax, direction in zip(np.ravel(figure.subplots(1, len(directions), sharey=True)), directions, strict=True):
            for pathway in params.pathways or ():
                if (effect := profile(rows, metric="nssd", direction=direction, pathway=pathway)).n:
                    curve(ax, effect, arrowed(pathway), linestyle=LINES.get(pathway.split("->")[1], ":"))
            ax.axhline(0, color="grey", linewidth=0.8)
            ax.set_title(f"{direction} following")
        ax.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        figure.axes[0].set_ylabel("NSSD")

    n = len({(r["sample"], r["form"], r["direction"]) for r in rows})
    caption = (
        f"NSSD (eq. 4) of cutting a pathway in a window of {number_of(params.window, 'layer')} around each layer; mean"
        f" and standard deviation over {number_of(n, 'prompt')} that follow (paper, figures 2 and 3a)."
    )
    return [Figure("knockout", "Pathways by layer", caption, draw, (11.0, 4.2))]
