"""Scenes as questions with one right answer: the picture alone, the text alone (what steering should leave as it is),
or both in conflict.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from eval_suite.benchmark import AnswerBenchmark, Item
from eval_suite.conflict import build_prompt
from eval_suite.scenes.draw import VISUAL_TIERS
from eval_suite.scenes.language import TEXT_TIERS
from eval_suite.scenes.world import TASKS, SceneSpec, scene, specs
from eval_suite.scorers.conflict import RULE, judge
from eval_suite.scorers.reading import Reading, right_or_wrong
from factory.registry import Params, register


class PlainScenesParams(Params):
    """``shows``: the modality that is left; ``conflict`` leaves both, and right is what the image shows. ``seed`` draws
    the scenes, ``per_task`` of each of the eight tasks, none of a visual tier above ``hardest`` (0 to 3; null: all).
    """

    shows: Literal["image", "text", "conflict"] = "image"
    split: Literal["dev", "test"] = "test"
    per_task: PositiveInt = 48
    seed: int = 1
    hardest: Annotated[int, Field(ge=0, le=3)] | None = None


@register("benchmark", "plain_scenes")
class PlainScenes(AnswerBenchmark):
    """Scenes with one modality alone, or both: share of open answers that name what is shown (or said), by task too."""

    Params = PlainScenesParams
    profile = "open_ended"
    scorer = RULE
    new_tokens = 6

    @property
    def protocol(self) -> str:
        tiers = "" if self.params.hardest is None else f"/tiers-to-{self.params.hardest}"
        return f"{super().protocol}/{self.params.shows}{tiers}"

    def items(self) -> Sequence[Item]:
        image, context = self.params.shows != "text", self.params.shows != "image"
        samples = [scene(spec) for spec in self._specs()]
        return [
            Item(
                s.id,
                partial(build_prompt, s, "open", image=image, context=context),
                (s.answer_vision, s.answer_text),
                (s.task,),
            )
            for s in samples
        ]

    def _specs(self) -> list[SceneSpec]:
        p = self.params
        if p.hardest is None:
            return specs(p.split, p.per_task, p.seed)
        drawn = [
            s for s in specs(p.split, p.per_task * len(VISUAL_TIERS) * TEXT_TIERS, p.seed) if s.visual_tier <= p.hardest
        ]
        return [s for task in TASKS for s in [s for s in drawn if s.task == task][: p.per_task]]

    def wanted(self, item: Item) -> str:
        return item.gold[self.params.shows == "text"]

    def read(self, item: Item, text: str) -> Reading:
        verdict = judge("open", text, *item.gold)
        return right_or_wrong(
            None if verdict == "error" else verdict, verdict == ("text" if self.params.shows == "text" else "vision")
        )
