"""TextVQA (Singh et al. 2019): questions about text in pictures, asked with and without the Rosetta OCR tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item
from eval_suite.released import asked, field_of, file, read_json
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vqa import EVALAI, score
from factory.data.prompt import Role
from factory.registry import Params, register


class TextVqaParams(Params):
    """``root`` holds TextVQA_0.5.1_val.json, train_images/ and, for ``ocr: true``,
    TextVQA_Rosetta_OCR_v0.2_val.json.
    """

    root: str
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
        tokens = self._ocr() if self.params.ocr else {}
        items = []
        for row in field_of(path, read_json(path), "data")[0]:
            image_id, question, humans = field_of(path, row, "image_id", "question", "answers")
            number = str(row.get("question_id", len(items)))
            image = path.parent / "train_images" / f"{image_id}.jpg"
            read = f"Reference OCR token: {', '.join(tokens.get(image_id, []))}" if self.params.ocr else ""
            prompt = asked(image, (Role.QUESTION, question), (Role.CONTEXT, read), (Role.OPTIONS, SHORT))
            items.append(Item(number, prompt, humans, images=(image,)))
        return items

    def _ocr(self) -> dict[str, list[str]]:
        path = file(self.params.root, "TextVQA_Rosetta_OCR_v0.2_val.json")
        return {row["image_id"]: row["ocr_tokens"] for row in field_of(path, read_json(path), "data")[0]}

    def read(self, item: Item, text: str) -> Reading:
        return score(text, item.gold, EVALAI)
