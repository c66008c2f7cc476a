"""The examination of a model on Scenes: can it read each modality alone, does it obey, and what does it prefer by
itself?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eval_suite.conflict import build_prompt
from eval_suite.scorers.conflict import judge
from factory.data.instructions import instruction
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample

from .draw import VISUAL_TIERS
from .language import TEXT_TIERS
from .world import TASKS, SceneSpec, scene, specs

FORMS = {"open": ("open",), "choice": ("order1", "order2")}
Answer = Callable[[list[Prompt]], list[str]]


def clean(task: str, n: int, seed: int, scale: int = 1, split: str = "test") -> list[ConflictSample]:
    """Samples of the easiest visual and textual tier."""
    return [scene(SceneSpec(task, split, seed * 7_000_003 + i, 0, 0, scale)) for i in range(n)]


def examine(
    answer: Answer,
    per_task: int = 64,
    seed: int = 1,
    scale: int = 1,
    asked: Iterable[str] = FORMS,
    split: str = "test",
) -> dict[str, Any]:
    """Shares in [0, 1] on a split: clean unimodal accuracy, obedience to instructions, and preference without
    any.

    ``answer`` maps prompts to greedy answers. Every sample is asked as ``asked`` says: openly, and as a choice in both
    option orders.
    """
    return {
        f"{name} ({form})": shares
        for form in asked
        for name, shares in _examine(answer, FORMS[form], per_task, seed, scale, split).items()
    }


def _examine(
    answer: Answer, forms: Sequence[str], per_task: int, seed: int, scale: int, split: str
) -> dict[str, dict[str, float]]:
    def shares(
        samples: Sequence[ConflictSample], write: Callable[[ConflictSample, str], Prompt], verdict: str
    ) -> float:
        asked = [(s, f) for s in samples for f in forms]
        texts = answer([write(s, f) for s, f in asked])
        return _mean(
            [
                judge(f, text, s.answer_vision, s.answer_text) == verdict
                for (s, f), text in zip(asked, texts, strict=True)
            ]
        )

    def by_task(
        pick: Callable[[str], list[ConflictSample]], write: Callable[[ConflictSample, str], Prompt], verdict: str
    ) -> dict[str, float]:
        found = {task: shares(pick(task), write, verdict) for task in TASKS}
        return {**found, "all": _mean(found.values())}

    conflicts = {task: [scene(s) for s in specs(split, per_task, seed, scale) if s.task == task] for task in TASKS}
    report = {
        "image_only": by_task(
            lambda t: clean(t, per_task, seed, scale, split), lambda s, f: build_prompt(s, f, context=False), "vision"
        ),
        "text_only": by_task(
            lambda t: clean(t, per_task, seed, scale, split), lambda s, f: build_prompt(s, f, image=False), "text"
        ),
    }
    for direction in ("vision", "text"):
        asks = lambda s, f, d=direction: build_prompt(s, f).append(instruction("amps_rq1", d))
        report[f"obeys_{direction}"] = by_task(conflicts.__getitem__, asks, direction)
    report["prefers_vision"] = by_task(conflicts.__getitem__, build_prompt, "vision")
    every = [s for samples in conflicts.values() for s in samples]
    for tag, tiers in (("visual_tier", len(VISUAL_TIERS)), ("text_tier", TEXT_TIERS)):
        graded = {str(t): [s for s in every if s.tags[tag] == t] for t in range(tiers)}
        report[f"prefers_vision_by_{tag}"] = {
            t: shares(samples, build_prompt, "vision") for t, samples in graded.items() if samples
        }
    return report


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
