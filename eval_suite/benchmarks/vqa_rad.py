"""VQA-RAD (Lau et al. 2018): questions that clinicians asked about radiology pictures, with the organ."""

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

FILE = "VQA_RAD Dataset Public.json"
IMAGES = "VQA_RAD Image Folder"
SOURCE = "at https://osf.io/89kps"


class VqaRadParams(Params):
    """``root`` holds "VQA_RAD Dataset Public.json" and "VQA_RAD Image Folder"; the test questions are those whose
    ``phrase_type`` begins with test.
    """

    root: RecipePath
    split: Literal["train", "test"] = "test"


@register("benchmark", "vqa_rad")
class VqaRad(MedicalBenchmark):
    """VQA-RAD: accuracy on closed questions, recall on open ones; by organ too."""

    Params = VqaRadParams

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, FILE, source=SOURCE)
        rows = [row for row in entries_of(path) if _is_test(row) == (self.split == "test")]
        if not rows:
            raise UserError(f"{path}: holds no {self.split} question; is it the released file?")
        return [self._item(path.parent / IMAGES / row.key("image_name"), name, row) for name, row in once(rows, "qid")]

    def _item(self, image: Path, name: str, row: Row) -> Item:
        told = row.text("answer_type").strip().lower()
        if told not in ("open", "closed"):
            raise row.fault(f"'answer_type' should be OPEN or CLOSED, and is {row.values['answer_type'][:60]!r}")
        return self.item(name, row, image, image.name, told, organ=row.key("image_organ"))


def _is_test(row: Row) -> bool:
    return row.among("phrase_type", "freeform", "para", "test_freeform", "test_para").startswith("test")
