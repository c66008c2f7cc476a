"""SLAKE (Liu et al. 2021, arXiv 2102.09542): radiology questions with organ, modality and kind of content; the English
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from eval_suite.benchmark import Item
from eval_suite.medical import MedicalBenchmark
from eval_suite.released import Row, entries_of, file, once
from factory.errors import UserError
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

SOURCE = "Slake1.0.zip of https://www.med-vqa.com/slake"


class SlakeParams(Params):
    """``root`` holds train.json, validate.json, test.json and imgs/, as Slake1.0.zip does."""

    root: RecipePath
    split: Literal["train", "validate", "test"] = "test"


@register("benchmark", "slake")
class Slake(MedicalBenchmark):
    """SLAKE's English questions: accuracy on closed ones, recall on open ones; by content, organ and modality too."""

    Params = SlakeParams

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/en"

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, f"{self.split}.json", source=SOURCE)
        rows = [row for row in entries_of(path) if row.among("q_lang", "en", "zh") == "en"]
        if not rows:
            raise UserError(f"{path}: holds no English question; is it the released file?")
        return [self._item(path.parent / "imgs" / row.text("img_name"), name, row) for name, row in once(rows, "qid")]

    def _item(self, image: Path, name: str, row: Row) -> Item:
        facts = {"organ": row.text("location"), "modality": row.text("modality"), "content": row.text("content_type")}
        told = row.among("answer_type", "OPEN", "CLOSED")
        return self.item(name, row, image, row.text("img_name"), told, **facts)
