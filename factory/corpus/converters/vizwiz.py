"""VizWiz-VQA (Gurari et al., CVPR 2018): ``SPLIT.json`` (or ``Annotations/SPLIT.json``) with ten answers a question,
``SPLIT/*.jpg``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.corpus.convert import SHORT, Converter, released, turns
from factory.registry import register

UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


@register("converter", "vizwiz")
class VizWiz(Converter):
    """Each question with the answer that most of its ten annotators gave (the earliest of equals), in LLaVA-1.5's
    wording.

    The LLaVA Steering repository draws one of the ten by confidence instead; a majority needs no seed.
    """

    def records(self, folder: Path, split: str) -> Iterator[dict[str, Any]]:
        path = next(
            (p for p in (folder / f"{split}.json", folder / "Annotations" / f"{split}.json") if p.is_file()),
            folder / f"{split}.json",
        )
        for item in released(path):
            name = Path(item["image"]).stem
            yield turns(name, f"{split}/{item['image']}", item["question"] + UNSURE + SHORT, majority(item["answers"]))


def majority(answers: list[dict[str, str]]) -> str:
    """The commonest answer, capitalised as the prompt spells 'Unanswerable'."""
    answer = Counter(a["answer"] for a in answers).most_common(1)[0][0]
    return "Unanswerable" if answer.lower() in ("unanswerable", "unsuitable") else answer
