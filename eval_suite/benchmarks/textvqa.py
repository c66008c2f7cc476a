"""TextVQA (Singh et al. 2019): questions about text in pictures, asked with and without the Rosetta OCR tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item
from eval_suite.released import asked, entries_of, file, once
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vqa import EVALAI, score
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"


class TextVqaParams(Params):
    """``root`` holds TextVQA_0.5.1_val.json, train_images/ and, for ``ocr: true``,
    TextVQA_Rosetta_OCR_v0.2_val.json.
    """

    root: RecipePath
    ocr: bool = True
    split: Literal["val"] = "val"


@register("benchmark", "textvqa")
class TextVqa(AnswerBenchmark):
    """TextVQA: M4C's soft accuracy; with (``ocr: true``, as LLaVA-1.5's paper) or without OCR tokens in the prompt."""

    Params = TextVqaParams
    scorer = EVALAI
    shares = {}  # noqa: RUF012  soft accuracy is no share of right answers

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/{'ocr' if self.params.ocr else 'no-ocr'}"

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, "TextVQA_0.5.1_val.json")
        tokens, items = self._ocr() if self.params.ocr else {}, []
        for number, row in once(entries_of(path, under="data"), "question_id"):
            name = row.key("image_id")
            if self.params.ocr and name not in tokens:
                raise row.fault(f"image {name} has no entry in {OCR}")
            image = path.parent / "train_images" / f"{name}.jpg"
            read = f"Reference OCR token: {', '.join(tokens[name])}" if self.params.ocr else ""
            prompt = asked(image, (Role.QUESTION, row.text("question")), (Role.CONTEXT, read), (Role.OPTIONS, SHORT))
            items.append(Item(number, prompt, row.texts("answers"), images=(image,)))
        return items

    def _ocr(self) -> dict[str, list[str]]:
        rows = once(entries_of(file(self.params.root, OCR), under="data"), "image_id")
        return {name: row.texts("ocr_tokens", least=0) for name, row in rows}

    def read(self, item: Item, text: str) -> Reading:
        return score(text, item.gold, EVALAI)
