"""IconQA (Lu et al. 2021): choose a text, or fill in the blank, about an icon picture; prompts of MoReS (arXiv
2412.04871).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from eval_suite.benchmark import AnswerBenchmark, Item
from eval_suite.released import RELEASED, Row, asked, read_json
from eval_suite.scorers.exact import ICONQA, iconqa
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

FOLDERS = {"txt": "choose_txt", "blank": "fill_in_blank"}
FILL = "Fill in the blanks in (_) or answer this question"


class IconQaParams(Params):
    """``root`` is iconqa_data/iconqa, with SPLIT/choose_txt/ID/ and SPLIT/fill_in_blank/ID/.

    ``answers``: what is right in the form ``txt``, the ``words`` of the choice or its ``index`` as in the released
    file, from 0 (MoReS trains on the index and scores it).

    ``form``: choices of text, or a blank to fill in.
    """

    root: RecipePath
    form: Literal["txt", "blank"] = "txt"
    split: Literal["train", "val", "test"] = "test"
    answers: Literal["words", "index"] = "words"

    @model_validator(mode="after")
    def _has_choices(self) -> IconQaParams:
        if self.form == "blank" and self.answers == "index":
            raise ValueError("answers: index belongs to form: txt; the blanks of the other form have no choices")
        return self


@register("benchmark", "iconqa")
class IconQa(AnswerBenchmark):
    """IconQA txt or blank: exact match of the stripped answer."""

    Params = IconQaParams
    profile = "mores"
    scorer = ICONQA

    @property
    def protocol(self) -> str:
        by_index = self.params.answers == "index"
        return f"{super().protocol}/{self.params.form}{'-index' if by_index else ''}"

    def items(self) -> Sequence[Item]:
        folder = self.params.root.directory("root", RELEASED) / self.params.split / FOLDERS[self.params.form]
        places = sorted(folder.glob("*/data.json"), key=lambda p: (len(p.parent.name), p.parent.name))
        if not places:
            raise UserError(f"{folder}: has no ID/data.json; give the folder iconqa_data/iconqa: root=FOLDER")
        return [self._item(path) for path in places]

    def _item(self, path: Path) -> Item:
        row = Row(str(path), read_json(path))
        if self.params.form == "txt":
            choices = row.texts("choices", least=2)
            index = row.whole("answer", below=len(choices))
            answer = str(index) if self.params.answers == "index" else choices[index].strip()
            ask = f"Choices: {', '.join(choices)}. Choose an option from the choices to answer the question."
        else:
            answer, ask = row.key("answer"), FILL
        image = path.with_name("image.png")
        one_line = f"{row.text('question')} {ask}"  # the question and what is asked of it stand in one line
        return Item(path.parent.name, asked(image, (Role.QUESTION, one_line)), answer, images=(image,))

    def read(self, item: Item, text: str) -> Reading:
        return iconqa(text, item.gold)
