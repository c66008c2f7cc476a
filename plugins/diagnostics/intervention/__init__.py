"""Blocking and amplifying attention heads (Instruction Anchor, sec. 4.2, table 1 and 4, figure 5c; SPEC section 5).

At the instruction tokens the output of chosen heads is set to 0 on prompts that follow (modality-following ratio 100 % before), or
multiplied by c on prompts that do not (0 % before). Heads are those with the largest mean dM (eq. 9) on training prompts, as many
random others, or the top heads that both directions share. What blocking does beside that is seen on prompts without the
competing modality, which need no decision (ours, in the place of table 1's benchmarks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from factory.data.answers import Dictionary
from factory.data.prompt import Role
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic
from factory.errors import UserError
from factory.instructed import Instructed, InstructedParams, ask, instructed
from factory.model.prefix import at_last, decode_texts, greedy, prefill
from factory.registry import register
from factory.run.evaluate import Bench
from factory.steer import Steering, steer
from factory.steer.heads import Choice, HeadScaler, choose_heads, coefficients, scores
from factory.summary import Summary

from .summary import summarise

CHOICES: tuple[Choice, ...] = ("top", "random", "shared")
ABSENT = {"vision": Role.CONTEXT, "text": Role.IMAGE}


class Cell(NamedTuple):
    """One intervention: block or amplify ``heads`` heads of a choice by ``coefficient``."""

    action: str
    choice: Choice
    heads: int
    coefficient: float


@register("diagnostic", "intervention")
class Intervention(Diagnostic):
    """Modality following while chosen heads are blocked or amplified at instruction tokens (Instruction Anchor, sec. 4.2).

    Rows: ``follows`` (1 or 0) of every prompt and cell; ``answers`` (1 or 0) of prompts with one modality alone, blocked and not.
    """

    class Params(InstructedParams):
        """``counts``: how many heads are blocked; ``amplified``: how many are amplified, by each of ``coefficients``; ``coefficient``: the
        one of them that the finding is about. ``alone``: also ask about one modality alone."""

        counts: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (10, 20, 30, 40)
        amplified: PositiveInt = 30
        coefficients: tuple[NonNegativeFloat, ...] = (2, 4, 6, 8, 10, 12, 14, 16, 18)
        coefficient: NonNegativeFloat = 10
        alone: bool = True
        seed: int = 0

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.scores: dict[str, Tensor] = {}

    def learn(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Raises ``UserError`` where no head attribution comes before this diagnostic in the recipe."""
        self.scores = {d: s for d in ("vision", "text") if (s := scores(found, d)).numel()}
        if set(self.params.directions) - set(self.scores):
            raise UserError("diagnostic 'intervention' needs each head's attribution: list `heads` before it under `diagnostics:`")

    @property
    def cells(self) -> list[Cell]:
        p = self.params
        blocked = [Cell("block", choice, k, 0.0) for k in p.counts for choice in CHOICES]
        return blocked + [Cell("amplify", choice, p.amplified, c) for c in sorted({*p.coefficients, p.coefficient}) for choice in CHOICES]

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        p = self.params
        items, rows = instructed(bench, samples, p, Dictionary(bench.view.tokenizer, p.dictionary))
        outcomes = ask(bench, items).outcomes if items else []
        for direction in p.directions:
            own = [(item, outcome) for item, outcome in zip(items, outcomes, strict=True) if item.direction == direction]
            groups = {"block": [(i, o) for i, o in own if o == "follow"], "amplify": [(i, o) for i, o in own if o != "follow"]}
            for cell in self.cells:
                if group := groups[cell.action]:
                    rows += self._rows(bench, group, [item.prompt for item, _ in group], direction, "follows", cell)
            if p.alone and own:
                prompts = [item.prompt.without(ABSENT[direction]) for item, _ in own]
                for cell in (None, *(c for c in self.cells if c.action == "block" and c.choice != "shared")):
                    rows += self._rows(bench, own, prompts, direction, "answers", cell)
        return rows

    def _rows(self, bench: Bench, group: Sequence[tuple[Instructed, str]], prompts: Sequence[Any], direction: str, metric: str, cell: Cell | None) -> Iterator[dict]:
        cell_facts = (cell or Cell("none", "top", 0, 1.0))._asdict()
        followed = self._follow(bench, [item for item, _ in group], prompts, direction, cell)
        for (item, outcome), value in zip(group, followed, strict=True):
            yield {**item.facts, "outcome": outcome, **cell_facts, "metric": metric, "layer": None, "head": None, "value": float(value)}

    @torch.no_grad()
    def _follow(self, bench: Bench, items: Sequence[Instructed], prompts: Sequence[Any], direction: str, cell: Cell | None) -> list[bool]:
        """Whether each prompt's answer follows the instruction while the cell's heads are scaled."""
        view = bench.view
        batch = view.encode(prompts)
        with steer(view, self._steering(direction, cell) if cell else []):
            hidden, prefix = prefill(view, batch)
            tokens = greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), bench.max_new_tokens)
        verdicts = [bench.benchmark.judge(item.sample, item.form, text) for item, text in zip(items, decode_texts(view, tokens), strict=True)]
        return [verdict == direction for verdict in verdicts]

    def _steering(self, direction: str, cell: Cell) -> Steering:
        chosen = choose_heads(self.scores, direction, cell.heads, cell.choice, self.params.seed)
        scaler, state = HeadScaler(), coefficients(chosen, cell.coefficient, tuple(self.scores[direction].shape))
        return Steering(scaler, state, scaler.placed(state, 0))

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params)
