"""Scenes in words: two texts, of which one claims what the picture of ``scenes`` shows and the other contradicts it
(ours).

Questions, answers and phrasings are those of ``scenes``; train, dev and test share no phrasing. Both texts are written
at the same textual tier, so that neither is easier to read. One of them always stands first: what a model prefers
without steering may be a name or a place, and the same samples with their texts exchanged (``order``) tell which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from eval_suite.benchmarks.scenes import PerTask
from eval_suite.conflict import ConflictBenchmark, Order, Scoring, SourceNames
from eval_suite.scenes.language import write_context
from eval_suite.scenes.world import ANSWERS, TASKS, SceneSpec, scene, specs
from factory.data.sample import ConflictSample, no_picture
from factory.data.sources import Sources, two_texts
from factory.registry import Params, register


class SceneTextsParams(Params):
    """``sources``: what the two texts are called, and ``order`` which stands first in a prompt; ``scoring`` as in MC²
    (SPEC.md 3.3); ``per_task``: samples of each task; ``seed`` draws them.
    """

    sources: SourceNames = ("memo", "email")
    order: Order = "named"
    scoring: Scoring = "both_orders"
    per_task: PerTask = PerTask()
    seed: int = 0


@register("benchmark", "scene_texts")
class SceneTexts(ConflictBenchmark):
    """Two texts that contradict each other about a scene, in the sentences of ``scenes``; no picture is needed."""

    Params = SceneTextsParams
    tasks = TASKS

    def __init__(self, params: SceneTextsParams) -> None:
        self.params, self.scoring = params, params.scoring

    @classmethod
    def sources_of(cls, params: SceneTextsParams) -> Sources:
        return two_texts(*params.sources)

    def samples(self, split: str) -> Sequence[ConflictSample]:
        return [self._sample(spec) for spec in specs(split, getattr(self.params.per_task, split), self.params.seed)]

    def _sample(self, spec: SceneSpec) -> ConflictSample:
        """A scene whose picture's answer is told in words, by a draw of its own."""
        s, rng = scene(spec), Random(f"first text/{spec.split}/{spec.task}/{spec.seed}")
        decoys = tuple(a for a in ANSWERS[spec.task] if a not in (s.answer_vision, s.answer_text))
        told = write_context(
            spec.task, str(s.tags["subject"]), s.answer_vision, spec.text_tier, spec.split, rng, decoys
        )
        tags = {key: value for key, value in s.tags.items() if key != "visual_tier"}
        return replace(s, load_image=no_picture, tags=tags, context_a=told, sources=self.sources)
