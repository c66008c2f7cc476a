"""IconQA (Lu et al., NeurIPS 2021): ``SPLIT/{choose_txt,fill_in_blank}/ID/{image.png,data.json}``, in the folder or
under ``iconqa_data/iconqa``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from factory.corpus.convert import Converter, released, turns


class IconQA(Converter):
    """Base of the two tasks with a text answer."""

    task: ClassVar[str]

    def records(self, folder: Path, split: str) -> Iterator[dict[str, Any]]:
        root = next(
            (p for p in (Path(), Path("iconqa_data/iconqa")) if (folder / p / split / self.task).is_dir()), Path()
        )
        for data in sorted(
            (folder / root / split / self.task).glob("*/data.json"), key=lambda p: (len(p.parent.name), p.parent.name)
        ):
            item = released(data)
            image = root / split / self.task / data.parent.name / "image.png"
            yield turns(data.parent.name, str(image), self.question(item), self.answer(item))

    def question(self, item: dict[str, Any]) -> str:
        raise TypeError(f"{type(self).__name__} must define question")

    def answer(self, item: dict[str, Any]) -> str:
        raise TypeError(f"{type(self).__name__} must define answer")
