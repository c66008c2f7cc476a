"""VizWiz-VQA (Gurari et al. 2018): questions that blind people asked about their photographs; some cannot be
answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Record
from eval_suite.released import asked, entries_of, file, once
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vqa import EVALAI, evalai, score
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


class VizwizParams(Params):
    """``root`` holds val.json (or test.json, maybe under Annotations/) and the folder of images of the same name."""

    root: RecipePath
    split: Literal["val", "test"] = "val"


@register("benchmark", "vizwiz")
class Vizwiz(AnswerBenchmark):
    """VizWiz-VQA: soft accuracy over the ten answers on val; a submission file for test."""

    Params = VizwizParams
    scorer = EVALAI
    shares = {}  # noqa: RUF012  soft accuracy is no share of right answers

    def unscorable(self) -> str | None:
        return "the answers are hidden: hand in the submission file" if self.split == "test" else None

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, f"{self.split}.json", f"Annotations/{self.split}.json")
        items = []
        for name, row in once(entries_of(path), "image"):
            image = Path(self.params.root).expanduser() / self.split / name
            prompt = asked(image, (Role.QUESTION, row.text("question")), (Role.OPTIONS, f"{UNANSWERABLE}\n{SHORT}"))
            humans = None if self.unscorable() else [human.text("answer", blank=True) for human in row.rows("answers")]
            kinds = (row.text("answer_type"),) if "answer_type" in row else ()
            items.append(Item(name, prompt, humans, kinds, images=(image,)))
        return items

    def read(self, item: Item, text: str) -> Reading:
        if item.gold is None:
            return Reading(text.strip() or None, failed=not text.strip())
        return score(text, item.gold, EVALAI)

    def submission(self, records: Sequence[Record]) -> tuple[str, Any] | None:
        return f"vizwiz_{self.split}_results.json", [
            {"image": r["sample"], "answer": evalai(r["text"])} for r in records
        ]
