"""IconQA (Lu et al. 2021): choose a text, or fill in the blank, about an icon picture; prompts of MoReS (arXiv
2412.04871).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from eval_suite.benchmark import AnswerBenchmark, Item
from eval_suite.released import asked, field_of, read_json
from eval_suite.scorers.exact import ICONQA, iconqa
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.errors import UserError
from factory.registry import Params, register

FOLDERS = {"txt": "choose_txt", "blank": "fill_in_blank"}
FILL = "Fill in the blanks in (_) or answer this question"


class IconQaParams(Params):
    """``root`` is iconqa_data/iconqa, with SPLIT/choose_txt/ID/ and SPLIT/fill_in_blank/ID/."""

    root: str
    form: Literal["txt", "blank"] = "txt"
    split: Literal["train", "val", "test"] = "test"


@register("benchmark", "iconqa")
class IconQa(AnswerBenchmark):
    """IconQA txt or blank: exact match of the stripped answer."""

    Params = IconQaParams
    profile = "mores"
    scorer = ICONQA

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/{self.params.form}"

    def items(self) -> Sequence[Item]:
        folder = Path(self.params.root).expanduser() / self.params.split / FOLDERS[self.params.form]
        places = sorted(folder.glob("*/data.json"), key=lambda p: (len(p.parent.name), p.parent.name))
        if not places:
            raise UserError(f"{folder}: has no ID/data.json; give the folder iconqa_data/iconqa: root=FOLDER")
        return [self._item(path) for path in places]

    def _item(self, path: Path) -> Item:
        row = read_json(path)
        question, answer = field_of(path, row, "question", "answer")
        if self.params.form == "txt":
            (choices,) = field_of(path, row, "choices")
            answer = choices[int(answer)]
            ask = f"Choices: {', '.join(choices)}. Choose an option from the choices to answer the question."
        else:
            ask = FILL
        image = path.with_name("image.png")
        one_line = f"{question} {ask}"  # the question and what is asked of it stand in one line
        return Item(path.parent.name, asked(image, (Role.QUESTION, one_line)), str(answer), images=(image,))

    def read(self, item: Item, text: str) -> Reading:
        return iconqa(text, item.gold)
