"""The examination of a trained model on the benchmark that it learned from: asked, shown, kept as exam.json."""

from __future__ import annotations

import json
from pathlib import Path

from factory import files
from factory.bench import answer_prompts, letter_tokens
from factory.benchmark import Answer, WithExam
from factory.data.prompt import Prompt
from factory.model.view import ModelView
from factory.terminal import Console

EXAM = "exam.json"


def answerer(view: ModelView, benchmark: WithExam, rows: int) -> Answer:
    """The model's greedy answers to prompts, as the benchmark wants them and as long as it has them, ``rows`` at a
    time; a prompt that was asked before is not asked again.
    """
    letters, known = letter_tokens(view, benchmark), dict[str, str]()

    def answer(prompts: list[Prompt]) -> list[str]:
        named = {prompt.digest: prompt for prompt in prompts}
        new = [(name, prompt) for name, prompt in named.items() if name not in known]
        for i in range(0, len(new), rows):
            batch = new[i : i + rows]
            answers = answer_prompts(view, [prompt for _, prompt in batch], benchmark.answer_tokens, letters)
            known.update(zip([name for name, _ in batch], answers, strict=True))
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
