"""Open-ended captions beside a misleading text (Instruction Anchor, arXiv 2602.03677, app. C.3 and D.2, tables 2 and
3).

The picture is to be described, the text context contradicts it, and the instruction asks to follow the picture.
Captions are generated as they are, with attention from the picture cut (table 2), and with the heads that follow vision
amplified (table 3). A caption follows where it names the picture's answer and not the text's, a measure that needs no
reference (ours); METEOR, CIDEr and SPICE are computed where the benchmark has reference captions and pycocoevalcap is
installed. The wording of the question is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from factory import registry
from factory.bench import Bench
from factory.data.instructions import Style, instruction
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, about
from factory.diagnose.summary import Summary
from factory.instruments.branch import run_stem
from factory.instruments.heads import Choice, chosen_heads, learnt_scores
from factory.instruments.pathways import Pathway
from factory.instruments.resume import Rest, answers, deep_layers, held_back, severed
from factory.model.view import ModelView
from factory.registry import register
from factory.steer import steer

from .summary import summarise

CHOICES: tuple[Choice, ...] = ("top", "random")


class Cell(NamedTuple):
    """One way to caption: ``none``, ``cut`` a pathway, or ``amplify`` heads of a choice by ``coefficient``."""

    action: str
    pathway: str = ""
    choice: Choice | Literal[""] = ""
    heads: int = 0
    coefficient: float = 1.0


@register("diagnostic", "captions")
class Captions(Diagnostic):
    """Captions beside a misleading text, with attention cut or heads amplified (Instruction Anchor, tables 2 and 3).

    Rows: ``follows`` and ``misled`` (1 or 0) of every sample and cell, with the caption; ``references``, how many a
    sample has.
    """

    pictured = True
    columned = True

    class Params(registry.Params):
        """``question`` asks for the caption, ``style`` words the instruction after it. ``pathways`` are cut in
        ``layers``, first and last (null: the upper half); ``counts`` of heads are amplified by ``coefficient``, which
        needs ``heads`` before this; an empty list leaves either out.

        ``seed`` draws the random heads; ``max_new_tokens`` of a caption.
        """

        question: str = "Describe the image in one sentence."
        style: Style = "amps_rq1"
        pathways: tuple[Pathway, ...] = ("image->context", "image->generated", "image->instruction")
        layers: tuple[int, int] | None = None
        counts: tuple[PositiveInt, ...] = (10, 20, 30)
        coefficient: NonNegativeFloat = 10
        seed: int = 0
        max_new_tokens: PositiveInt = 30

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.scores: dict[str, Tensor] = {}

    def learn(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Raises ``UserError`` where heads are to be amplified and no head attribution comes before this in the
        recipe.
        """
        if self.params.counts:
            self.scores = learnt_scores(found, ["vision"], self.name)

    @property
    def cells(self) -> list[Cell]:
        p = self.params
        cut = [Cell("cut", pathway) for pathway in p.pathways]
        return [
            Cell("none"),
            *cut,
            *(Cell("amplify", "", choice, k, p.coefficient) for choice in CHOICES for k in p.counts),
        ]

    def prompt(self, bench: Bench, sample: ConflictSample) -> Prompt:
        asked = bench.benchmark.prompt(sample, bench.benchmark.forms[0]).without(Role.QUESTION, Role.OPTIONS)
        return asked.append(Segment(Role.QUESTION, self.params.question), instruction(self.params.style, "vision"))

    @torch.no_grad()
    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        view, toward = bench.view, ["vision"] * len(samples)
        stem = run_stem(view, view.encode([self.prompt(bench, s) for s in samples]))
        rows = [
            {
                **about(s, "caption", "vision"),
                **Cell("")._asdict(),
                "metric": "references",
                "layer": None,
                "head": None,
                "value": float(len(told)),
                "caption": "\n".join(told),
            }
            for s in samples
            for told in [bench.benchmark.references(s)]
        ]
        for cell in self.cells:
            target = cell.pathway.partition("->")[2] or "instruction"
            texts = self._captions(view, held_back(view, stem, [target], toward), cell)
            rows += (row for s, text in zip(samples, texts, strict=True) for row in _judged(bench, s, cell, text))
        return rows

    def _captions(self, view: ModelView, rest: Rest, cell: Cell) -> list[str]:
        p = self.params
        if cell.action == "cut":
            with severed(view, rest, cell.pathway, deep_layers(view.depth, p.layers)):
                return answers(view, rest, p.max_new_tokens)
        with steer(
            view,
            [chosen_heads(self.scores, "vision", cell.heads, cell.choice or "top", cell.coefficient, p.seed)]
            if cell.heads
            else [],
        ):
            return answers(view, rest, p.max_new_tokens)

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params, self.cells)


def _judged(bench: Bench, sample: ConflictSample, cell: Cell, text: str) -> Iterator[dict[str, Any]]:
    verdict = bench.benchmark.judge(sample, "open", text)
    for metric, wanted in (("follows", "vision"), ("misled", "text")):
        yield {
            **about(sample, "caption", "vision"),
            **cell._asdict(),
            "metric": metric,
            "layer": None,
            "head": None,
            "value": float(verdict == wanted),
            "caption": text,
        }
