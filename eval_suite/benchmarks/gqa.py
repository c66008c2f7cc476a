"""GQA (Hudson and Manning 2019): compositional questions on scene graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Record
from eval_suite.released import asked, file, named_of
from eval_suite.scorers.exact import GQA, gqa, gqa_answer
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register


class GqaParams(Params):
    """``root`` holds ``SPLIT_questions.json`` and images/."""

    root: RecipePath
    split: str = "testdev_balanced"


@register("benchmark", "gqa")
class Gqa(AnswerBenchmark):
    """GQA: exact match of the lower-cased answer, by structural type too."""

    Params = GqaParams
    scorer = GQA

    def unscorable(self) -> str | None:
        return (
            "the answers are hidden: hand in the submission file"
            if self.split.startswith(("test_", "challenge", "submission"))
            else None
        )

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, f"{self.split}_questions.json")
        items = []
        for number, row in named_of(path).items():
            image = path.parent / "images" / f"{row.key('imageId')}.jpg"
            kinds = (row.inner("types").text("structural"),) if "types" in row else ()
            prompt = asked(image, (Role.QUESTION, row.text("question")), (Role.OPTIONS, SHORT))
            gold = None if self.unscorable() else row.text("answer")
            items.append(Item(number, prompt, gold, kinds, images=(image,)))
        return items

    def read(self, item: Item, text: str) -> Reading:
        if item.gold is None:
            return Reading(gqa_answer(text) or None, failed=not text.strip())
        return gqa(text, item.gold)

    def submission(self, records: Sequence[Record]) -> tuple[str, Any] | None:
        return f"{self.split}_predictions.json", [
            {"questionId": r["sample"], "prediction": gqa_answer(r["text"])} for r in records
        ]
