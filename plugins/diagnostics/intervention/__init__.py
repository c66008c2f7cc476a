"""Blocking and amplifying attention heads (Instruction Anchor, arXiv 2602.03677, sec. 4.2, table 1 and 4, figure 5c;
SPEC section 5).

At the instruction tokens the output of chosen heads is set to 0 on prompts that follow (modality-following ratio 100 %
before), or multiplied by c on prompts that do not (0 % before). Heads are those with the largest mean dM (eq. 9) on
training prompts, as many random others, or the top heads that both directions share. What blocking does beside that is
seen on prompts without the competing modality, which need no decision (ours, in the place of table 1's benchmarks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from factory.bench import Bench
from factory.data.sample import ConflictSample
from factory.diagnose.summary import Summary
from factory.instruments.answers import Dictionary
from factory.instruments.branch import run_stem
from factory.instruments.heads import Choice, chosen_heads, learnt_scores
from factory.instruments.instructed import Asked, InstructedParams, Instructing, ask_instructed, instructed
from factory.instruments.resume import Rest, answers, held_back
from factory.registry import register
from factory.steer import steer

from .summary import summarise

CHOICES: tuple[Choice, ...] = ("top", "random", "shared")


class Cell(NamedTuple):
    """One intervention: block or amplify ``heads`` heads of a choice by ``coefficient``; ``draw`` tells random choices
    apart.
    """

    action: str
    choice: Choice
    heads: int
    coefficient: float
    draw: int = 0


@register("diagnostic", "intervention")
class Intervention(Instructing):
    """Modality following while chosen heads are blocked or amplified at instruction tokens (Instruction Anchor, sec.
    4.2).

    Rows: ``follows`` (1 or 0) of every prompt and cell; ``answers`` (1 or 0) of prompts with one modality alone,
    blocked and not.
    """

    class Params(InstructedParams):
        """``counts``: how many heads are blocked; ``amplified``: how many are amplified, by each of ``coefficients``;
        ``coefficient``: the one of them that the finding is about. ``draws``: so many choices of random heads.
        ``alone``: also ask about one modality alone.

        ``seed`` draws the random heads.
        """

        counts: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (10, 20, 30, 40)
        amplified: PositiveInt = 30
        coefficients: tuple[NonNegativeFloat, ...] = (2, 4, 6, 8, 10, 12, 14, 16, 18)
        coefficient: NonNegativeFloat = 10
        draws: PositiveInt = 3
        alone: bool = True
        seed: int = 0

    @classmethod
    def needs_sources(cls, params: Params) -> bool:
        return params.alone

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.scores: dict[str, Tensor] = {}

    def whole_prompts(self, ids: Sequence[str]) -> int:
        return super().whole_prompts(ids) * (1 + self.params.alone)

    def learn(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Raises ``UserError`` where no head attribution comes before this diagnostic in the recipe."""
        self.scores = learnt_scores(found, self.params.directions, self.name)

    @property
    def cells(self) -> list[Cell]:
        p = self.params
        choices = [(choice, draw) for choice in CHOICES for draw in range(p.draws if choice == "random" else 1)]
        blocked = [Cell("block", choice, k, 0.0, draw) for k in p.counts for choice, draw in choices]
        return blocked + [
            Cell("amplify", choice, p.amplified, c, draw)
            for c in sorted({*p.coefficients, p.coefficient})
            for choice, draw in choices
        ]

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        p = self.params
        items, rows = instructed(bench, samples, p, Dictionary(bench.view.tokenizer, p.dictionary))
        if not items:
            return rows
        asked = ask_instructed(bench, items)
        rest = held_back(bench.view, asked.stem, ["instruction"], asked.directions, asked.sources)
        for direction in p.directions:
            own = [i for i, item in enumerate(items) if item.direction == direction]
            groups = {
                "block": [i for i in own if asked.outcomes[i] == "follow"],
                "amplify": [i for i in own if asked.outcomes[i] != "follow"],
            }
            for cell in self.cells:
                if group := groups[cell.action]:
                    rows += self._rows(bench, asked, group, rest.pick(group), direction, "follows", cell)
            if p.alone and own:
                batch = bench.view.encode([items[i].prompt.only(direction) for i in own])
                stem, ways = run_stem(bench.view, batch), [direction] * len(own)
                alone = held_back(bench.view, stem, ["instruction"], ways, asked.sources)
                for cell in (
                    Cell("none", "top", 0, 1.0),
                    *(c for c in self.cells if c.action == "block" and c.choice != "shared"),
                ):
                    rows += self._rows(bench, asked, own, alone, direction, "answers", cell)
        return rows

    def _rows(
        self, bench: Bench, asked: Asked, group: Sequence[int], rest: Rest, direction: str, metric: str, cell: Cell
    ) -> Iterator[dict]:
        """Greedy answers while the cell's heads are scaled: only the prompt from its instruction on is run again."""
        with steer(
            bench.view,
            chosen_heads(
                self.scores, direction, cell.heads, cell.choice, cell.coefficient, self.params.seed + cell.draw
            ),
        ):
            texts = answers(bench.view, rest, bench.max_new_tokens, bench.among)
        for i, text in zip(group, texts, strict=True):
            follows = bench.benchmark.judge(asked.items[i].sample, asked.items[i].form, text) == direction
            yield {
                **asked.facts(i),
                **cell._asdict(),
                "of": self.scores[direction].numel(),
                "metric": metric,
                "layer": None,
                "head": None,
                "value": float(follows),
            }

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params)
