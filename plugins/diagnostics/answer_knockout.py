"""Generated answers while attention is cut (Instruction Anchor, arXiv 2602.03677, sec. 3.3.3, figure 3c; SPEC section
5).

What knockout (eq. 3, 4) sees in the first token's distribution is looked at in whole answers: a pathway is cut in the
deep layers while the prompt's end is read and all of the answer is generated, and the modality-following ratio (MFR) is
taken on the prompts that follow. The paper's deep layers are lost in our copy: the upper half, or ``layers``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, PositiveInt

from factory.bench import Bench
from factory.benchmark import Records
from factory.data.sample import ConflictSample
from factory.diagnose.profiles import Mean, matching, mean_of, share_of
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.instruments.answers import Dictionary
from factory.instruments.instructed import InstructedParams, Instructing, ask_instructed, instructed, told_left_out
from factory.instruments.pathways import Pathway, arrowed, of_an_image
from factory.instruments.resume import answers, around, deep_layers, held_back, severed
from factory.registry import register
from plugins.diagnostics._anchor import CLAIMS

if TYPE_CHECKING:
    import matplotlib.figure

STRONG, WEAK = "instruction->generated", "cues->generated"
DRAMATIC, NEGLIGIBLE = 0.5, 0.1  # falls of MFR; ours, the paper has a figure and these two words


@register("diagnostic", "answer_knockout")
class AnswerKnockout(Instructing):
    """Modality following of generated answers while attention between token roles is cut (Instruction Anchor, figure
    3c).

    Rows: ``follows`` (1 or 0) of every prompt and pathway; with a ``layer`` where a window around it was cut.
    """

    class Params(InstructedParams):
        """``pathways`` as in ``knockout``; ``layers``: first and last that are cut (null: the upper half). ``window``:
        also cut so many layers around each one, for a curve by layer (null: no curve)."""

        pathways: Annotated[tuple[Pathway, ...], Field(min_length=1)] = (
            STRONG,
            WEAK,
            "compliant->instruction",
            "competing->instruction",
        )
        layers: tuple[int, int] | None = None
        window: PositiveInt | None = None

    @classmethod
    def needs_pictures(cls, params: Any) -> bool:
        return of_an_image(params.pathways)

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        p, view = self.params, bench.view
        cut: dict[int | None, Collection[int]] = {None: deep_layers(view.depth, p.layers)}
        cut |= {centre: layers for centre, layers in enumerate(around(view.depth, p.window))} if p.window else {}
        items, rows = instructed(bench, samples, p, Dictionary(view.tokenizer, p.dictionary))
        if not items:
            return rows
        asked = ask_instructed(bench, items)
        for pathway in p.pathways:
            rest = held_back(view, asked.stem, [pathway.split("->")[1]], asked.directions, asked.sources)
            for layer, layers in cut.items():
                with severed(view, rest, pathway, layers):
                    texts = answers(view, rest, bench.max_new_tokens, bench.among)
                for i, text in enumerate(texts):
                    follows = bench.benchmark.judge(items[i].sample, items[i].form, text) == items[i].direction
                    rows.append(
                        {
                            **asked.facts(i),
                            "metric": "follows",
                            "pathway": pathway,
                            "layer": layer,
                            "head": None,
                            "value": float(follows),
                        }
                    )
        return rows

    def summary(self, rows: Records) -> Summary:
        p = self.params
        followed = matching(rows, metric="follows", outcome="follow")
        directions = [d for d in p.directions if matching(followed, direction=d)]
        shares = {d: {path: _share(followed, d, path) for path in p.pathways} for d in directions}
        layers = sorted({r["layer"] for r in followed} - {None})
        curves = (
            {
                d: {path: [_share(followed, d, path, layer).mean for layer in layers] for path in p.pathways}
                for d in directions
            }
            if layers
            else {}
        )
        findings = [_mediated(followed, d) for d in directions if {STRONG, WEAK} <= set(p.pathways)]
        findings.append(told_left_out(rows))
        table = Table(
            "answer_knockout",
            "MFR of generated answers while a pathway is cut, on prompts that follow (before: 1)",
            ("direction", "pathway", "n", "MFR", "low", "high"),
            tuple((d, arrowed(path), e.n, e.mean, *e.interval) for d, by in shares.items() for path, e in by.items()),
        )
        where = "the upper half of the layers" if p.layers is None else f"layers {p.layers[0]} to {p.layers[1]}"
        figures = ([_figure(shares, where)] if shares else []) + ([_by_layer(curves, p.window)] if curves else [])
        return Summary(
            f"Answers while attention is cut in {where} ({p.style}, {p.layout})",
            tuple(findings),
            (table,),
            tuple(figures),
            CLAIMS,
        )


def _follows(rows: Records, direction: str, pathway: str, layer: int | None = None) -> dict[tuple[str, str], float]:
    return {
        (r["sample"], r["form"]): r["value"] for r in matching(rows, direction=direction, pathway=pathway, layer=layer)
    }


def _share(rows: Records, direction: str, pathway: str, layer: int | None = None) -> Mean:
    of = _follows(rows, direction, pathway, layer)
    return share_of(list(of.values()), list(of))


def _mediated(rows: Records, direction: str) -> Finding:
    """Cutting the instruction off from the answer stops prompts from following; cutting the modalities off from it does
    not.
    """
    strong, weak = (_follows(rows, direction, path) for path in (STRONG, WEAK))
    keys = list(strong)
    s, w, difference = (
        share_of(list(strong.values()), keys),
        share_of([weak[k] for k in keys], keys),
        mean_of([weak[k] - strong[k] for k in keys], keys),
    )
    text = (
        f"{direction}: the decision reaches the answer through the instruction: MFR 1.000 to {s} with {arrowed(STRONG)}"
        f" cut, to {w} with {arrowed(WEAK)} cut; difference {difference} (needs a fall of {DRAMATIC} or more, and one"
        f" of {NEGLIGIBLE} or less; n={s.n})"
    )
    values = {
        "direction": direction,
        **s.facts("mfr_strong"),
        **w.facts("mfr_weak"),
        **difference.facts("difference"),
        "n": s.n,
    }
    holds = 1 - s.mean >= DRAMATIC and 1 - w.mean <= NEGLIGIBLE and difference.interval[0] > 0
    return Finding(text, holds, values, difference.p, "anchor 2/mediated")


def _figure(shares: dict[str, dict[str, Mean]], where: str) -> Figure:
    def draw(figure: matplotlib.figure.Figure) -> None:
        ax = figure.subplots()
        height = 0.8 / len(shares)
        for n, (direction, by) in enumerate(shares.items()):
            at = np.arange(len(by)) + n * height
            means = np.array([e.mean for e in by.values()])
            spread = np.abs(np.array([e.interval for e in by.values()]).T - means)
            ax.barh(
                at,
                means,
                height * 0.9,
                xerr=spread,
                label=f"{direction} following (n={next(iter(by.values())).n})",
                error_kw={"linewidth": 1},
            )
            ax.set_yticks(np.arange(len(by)) + height * (len(shares) - 1) / 2, [arrowed(path) for path in by])
        ax.invert_yaxis()
        ax.set(xlabel="modality-following ratio", xlim=(0, 1.02))
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    caption = (
        f"Share of generated answers that still follow while a pathway is cut in {where}, on prompts that follow uncut;"
        " 95 % intervals (paper, figure 3c)."
    )
    return Figure("answer_knockout", "Following while attention is cut", caption, draw, (8.0, 3.6))


def _by_layer(curves: dict[str, dict[str, list[float]]], window: int) -> Figure:
    def draw(figure: matplotlib.figure.Figure) -> None:
        axes = np.ravel(figure.subplots(1, len(curves), sharey=True))
        for ax, (direction, by) in zip(axes, curves.items(), strict=True):
            for path, means in by.items():
                ax.plot(means, marker="o", markersize=3, label=arrowed(path))
            ax.set(xlabel="layer", ylim=(-0.02, 1.02), title=f"{direction} following")
        axes[0].set_ylabel("modality-following ratio")
        axes[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    caption = f"The same with the pathway cut in a window of {window} layers around each layer."
    return Figure("answer_knockout_by_layer", "Following while attention is cut, by layer", caption, draw, (11.0, 3.6))
