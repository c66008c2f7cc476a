"""Drawn films: some pictures in a row, one of which carries the evidence, so that the recall of key frames is exact."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any, Literal

from pydantic import Field, PositiveInt

from eval_suite.benchmark import AnswerBenchmark, Item, Record, Sums
from eval_suite.scenes.lessons.films import FRAMES, asked, film_of
from eval_suite.scenes.world import TASKS, SceneSpec, scene
from eval_suite.scorers.conflict import RULE, judge
from eval_suite.scorers.reading import Reading, right_or_wrong
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.registry import Params, register


class FilmsParams(Params):
    """``per_task`` films of each of the eight tasks, of ``frames`` pictures, clean ones; ``seed`` draws them."""

    split: Literal["dev", "test"] = "test"
    per_task: PositiveInt = 16
    frames: int = Field(FRAMES, ge=2, le=12)
    seed: int = 1


@register("benchmark", "films")
class Films(AnswerBenchmark):
    """Films of which one picture shows what is asked: share of right open answers, by task too. Where a method leaves
    pictures out, ``frame_recall`` is the share of films of which it kept that one.
    """

    Params = FilmsParams
    profile = "open_ended"
    scorer = RULE
    new_tokens = 6
    beside = ("frame_recall",)
    shares = {"accuracy": ("right", "n"), "frame_recall": ("kept", "kept_of")}  # noqa: RUF012

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/{self.params.frames}"

    def items(self) -> Sequence[Item]:
        p = self.params
        samples = [scene(SceneSpec(t, p.split, p.seed * 8_000_009 + i, 0, 0)) for t in TASKS for i in range(p.per_task)]
        return [
            Item(s.id, partial(self._prompt, s), (s.answer_vision, s.answer_text), (s.task,), facts={"at": self._at(s)})
            for s in samples
        ]

    def _rng(self, sample: ConflictSample) -> Random:
        return Random(f"film/{self.params.seed}/{sample.id}")

    def _at(self, sample: ConflictSample) -> int:
        return self._rng(sample).randrange(self.params.frames)

    def _prompt(self, sample: ConflictSample) -> Prompt:
        return asked(sample, film_of(sample, self._rng(sample), self.params.frames), "open")

    def wanted(self, item: Item) -> str:
        return item.gold[0]

    def about(self, item: Item) -> Sequence[tuple[str, str]]:
        return (*super().about(item), ("Evidence", f"picture {item.facts['at'] + 1}"))

    def read(self, item: Item, text: str) -> Reading:
        found = judge("open", text, *item.gold)
        return right_or_wrong(None if found == "error" else found, found == "vision")

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        """With what the prompts kept of the films, where that was not all."""
        told = [member for member in members if "pictures" in member]
        kept = {"kept": float(sum(m["at"] in m["pictures"] for m in told)), "kept_of": float(len(told))}
        return {**super().unit_sums(members), **(kept if told else {})}

    def metrics(self, sums: Sums) -> dict[str, Any]:
        recall = {"frame_recall": sums.ratio("kept", "kept_of")} if "kept_of" in sums.values else {}
        return {"accuracy": sums.ratio("right", "n"), **recall}
