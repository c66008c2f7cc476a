"""The examination of a trained model on the benchmark that it learned from: asked, shown, kept as exam.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory import files
from factory.bench import Bench, answer_prompts
from factory.data.prompt import Prompt
from factory.model.view import ModelView
from factory.terminal import Console

ANSWER_TOKENS = 8
EXAM = "exam.json"


def answering(view: ModelView, benchmark: Any, rows: int) -> Callable[[list[Prompt]], list[str]]:
    """The model's greedy answers to prompts, ``rows`` at a time; a prompt that was asked before is not asked again.

    An answer has at most ``benchmark.answer_tokens`` tokens, where the benchmark says so.
    """
    bench, known = Bench(view, benchmark, 0, getattr(benchmark, "answer_tokens", ANSWER_TOKENS)), {}

    def answer(prompts: list[Prompt]) -> list[str]:
        named = {prompt.digest: prompt for prompt in prompts}
        new = [(name, prompt) for name, prompt in named.items() if name not in known]
        for i in range(0, len(new), rows):
            batch = new[i : i + rows]
            known.update(
                zip(
                    [name for name, _ in batch],
                    answer_prompts(bench, [p for _, p in batch], bench.max_new_tokens),
                    strict=True,
                )
            )
        return [known[prompt.digest] for prompt in prompts]

    return answer


def tell(exam: dict[str, dict[str, float]], folder: Path) -> None:
    """Write exam.json into ``folder`` and print it."""
    files.write_text(folder / EXAM, json.dumps(exam, indent=1) + "\n")
    console = Console()
    console.print("examination on the test split, shares in %")
    for name, shares in exam.items():
        console.print(
            f"  {name}: " + "  ".join(f"{key} {100 * value:.1f}" for key, value in shares.items()),
            highlight=False,
            soft_wrap=True,
        )
