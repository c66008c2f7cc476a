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
from factory.diagnose import Query, hold_back
from factory.diagnose.instructed import Asked, InstructedParams, Instructing, ask, instructed
from factory.diagnose.summary import Summary
from factory.errors import UserError
from factory.model.encode import Batch
from factory.model.prefix import Prefix, at_last, decode_texts, extend, greedy, prefill
from factory.model.view import ModelView
from factory.registry import register
from factory.run.evaluate import Bench
from factory.steer import Steering, steer
from factory.steer.heads import Choice, HeadScaler, choose_heads, coefficients, scores

from .summary import summarise

CHOICES: tuple[Choice, ...] = ("top", "random", "shared")
ABSENT = {"vision": Role.CONTEXT, "text": Role.IMAGE}


class Cell(NamedTuple):
    """One intervention: block or amplify ``heads`` heads of a choice by ``coefficient``."""

    action: str
    choice: Choice
    heads: int
    coefficient: float


class Rest(NamedTuple):
    """Prompts that lie in a cache up to their instruction, and what follows."""

    prefix: Prefix
    query: Query

    def pick(self, rows: Sequence[int]) -> Rest:
        at = torch.tensor(rows, device=self.query.ids.device)
        return Rest(self.prefix.fork(at), self.query.pick(at))


def from_instruction(view: ModelView, batch: Batch, hidden: Tensor, whole: Prefix) -> Rest:
    """Prompts held back from their first instruction token on; before it the heads change nothing."""
    mask = batch.mask(Role.INSTRUCTION)
    columns = torch.arange(mask.shape[1], device=mask.device)
    first = torch.where(mask, columns, mask.shape[1] - 1).amin(-1)
    prefix, query, _ = hold_back(view, batch.input_ids, hidden, whole, (columns >= first[:, None]) & batch.attention_mask.bool())
    return Rest(prefix, query)


@torch.no_grad()
def _prefilled(view: ModelView, batch: Batch) -> tuple[Tensor, Prefix]:
    return prefill(view, batch)


@register("diagnostic", "intervention")
class Intervention(Instructing):
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

    def passes(self, ids: Sequence[str]) -> int:
        return (2 if self.params.alone else 1) * super().passes(ids)

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
        if not items:
            return rows
        asked = ask(bench, items)
        rest = from_instruction(bench.view, asked.stem.batch, asked.stem.hidden, asked.stem.prefix)
        for direction in p.directions:
            own = [i for i, item in enumerate(items) if item.direction == direction]
            groups = {"block": [i for i in own if asked.outcomes[i] == "follow"], "amplify": [i for i in own if asked.outcomes[i] != "follow"]}
            for cell in self.cells:
                if group := groups[cell.action]:
                    rows += self._rows(bench, asked, group, rest.pick(group), direction, "follows", cell)
            if p.alone and own:
                batch = bench.view.encode([items[i].prompt.without(ABSENT[direction]) for i in own])
                alone = from_instruction(bench.view, batch, *_prefilled(bench.view, batch))
                for cell in (Cell("none", "top", 0, 1.0), *(c for c in self.cells if c.action == "block" and c.choice != "shared")):
                    rows += self._rows(bench, asked, own, alone, direction, "answers", cell)
        return rows

    def _rows(self, bench: Bench, asked: Asked, group: Sequence[int], rest: Rest, direction: str, metric: str, cell: Cell) -> Iterator[dict]:
        texts = self._answer(bench, rest, direction, cell)
        for i, text in zip(group, texts, strict=True):
            follows = bench.benchmark.judge(asked.items[i].sample, asked.items[i].form, text) == direction
            yield {**asked.facts(i), **cell._asdict(), "metric": metric, "layer": None, "head": None, "value": float(follows)}

    @torch.no_grad()
    def _answer(self, bench: Bench, rest: Rest, direction: str, cell: Cell) -> list[str]:
        """Greedy answers while the cell's heads are scaled: only the prompt from its instruction on is run again."""
        view = bench.view
        with steer(view, self._steering(direction, cell)):
            hidden, longer = extend(view, rest.prefix.fork(), *rest.query)
            tokens = greedy(view, longer, view.logits(at_last(hidden, rest.query.mask)), bench.max_new_tokens)
        return decode_texts(view, tokens)

    def _steering(self, direction: str, cell: Cell) -> Steering:
        chosen = choose_heads(self.scores, direction, cell.heads, cell.choice, self.params.seed)
        scaler, state = HeadScaler(), coefficients(chosen, cell.coefficient, tuple(self.scores[direction].shape))
        return Steering(scaler, state, scaler.placed(state, 0))

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params)
