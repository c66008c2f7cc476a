"""Option letters: whether clean evidence is answered with the right letter in both orders."""

from __future__ import annotations

from typing import Any

from eval_suite.conflict import FORMS
from eval_suite.scenes.lessons.asking import Answer, alone, by_task, mean
from eval_suite.scorers.conflict import agree, judge
from factory.data.sample import ConflictSample


def examine(answer: Answer, per_task: int, seed: int, scale: int = 1) -> dict[str, dict[str, Any]]:
    """Shares of clean test samples, either modality alone, whose letters are right in both orders."""

    def right(samples: list[ConflictSample], evidence: str) -> float:
        orders = []
        for form in FORMS["both_orders"]:
            asked = [alone(s, form, evidence) for s in samples]
            texts = answer([prompt for prompt, _ in asked])
            orders.append([judge(form, t, s.answer_vision, s.answer_text) for s, t in zip(samples, texts, strict=True)])
        direction = "vision" if evidence == "image" else "text"
        return mean(agree(verdicts) == direction for verdicts in zip(*orders, strict=True))

    return {
        f"{evidence}_letters": by_task(per_task, seed, scale, lambda samples, e=evidence: right(samples, e))
        for evidence in ("image", "text")
    }
