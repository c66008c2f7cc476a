"""ScienceQA (Lu et al., NeurIPS 2022): ``problems.json``, ``pid_splits.json`` and ``images/SPLIT/ID/image.png``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.corpus.convert import LETTER, Converter, released, turns
from factory.registry import register


@register("converter", "scienceqa")
class ScienceQA(Converter):
    """ScienceQA-IMG: the questions that have an image, answered by the letter, in LLaVA-1.5's wording."""

    def records(self, folder: Path, split: str) -> Iterator[dict[str, Any]]:
        problems, splits = released(folder / "problems.json"), released(folder / "pid_splits.json")
        for pid in splits.get(split, []):
            problem = problems[pid]
            if problem["image"]:
                yield turns(
                    pid,
                    f"images/{split}/{pid}/{problem['image']}",
                    question(problem) + LETTER,
                    "ABCDEFGH"[problem["answer"]],
                )


def question(problem: dict[str, Any]) -> str:
    """``Context: {hint}``, the question and the lettered choices, a line each; no first line where there is no hint."""
    choices = [f"{letter}. {choice}" for letter, choice in zip("ABCDEFGH", problem["choices"], strict=False)]
    context = [f"Context: {problem['hint']}"] if problem["hint"] else []
    return "\n".join([*context, problem["question"], *choices])
