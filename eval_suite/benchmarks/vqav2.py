"""VQAv2 (Goyal et al. 2017): open questions on COCO images, ten human answers each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Record
from eval_suite.released import Row, asked, entries_of, file, once
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vqa import OFFICIAL, evalai, score
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register


class VqaParams(Params):
    """``root`` holds the released JSON files and the image folder; ``rule`` ``vqa-evalai/1`` scores as the server and
    LLaVA do.
    """

    root: RecipePath
    split: Literal["val2014", "test2015", "test-dev2015"] = "val2014"
    rule: Literal["vqa/1", "vqa-evalai/1"] = OFFICIAL


@register("benchmark", "vqav2")
class Vqav2(AnswerBenchmark):
    """VQAv2: soft accuracy on val2014; a submission file for test2015 and test-dev2015, whose answers are hidden."""

    Params = VqaParams
    shares = {}  # noqa: RUF012  soft accuracy is no share of right answers

    @property
    def scorer(self) -> str:
        return self.params.rule

    def unscorable(self) -> str | None:
        return None if self.split == "val2014" else "the answers are hidden: hand in the submission file"

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, f"v2_OpenEnded_mscoco_{self.split}_questions.json")
        coco = "test2015" if self.split.startswith("test") else self.split
        golds, items = self._annotations(), []
        for number, row in once(entries_of(path, under="questions"), "question_id"):
            image = path.parent / coco / f"COCO_{coco}_{row.whole('image_id'):012d}.jpg"
            prompt = asked(image, (Role.QUESTION, row.text("question")), (Role.OPTIONS, SHORT))
            facts = {"question_id": row.values["question_id"]}
            if golds is None:
                items.append(Item(number, prompt, images=(image,), facts=facts))
                continue
            if number not in golds:
                raise row.fault(f"question {number} has no annotation in {self._annotated}")
            humans = [human.text("answer", blank=True) for human in golds[number].rows("answers")]
            items.append(Item(number, prompt, humans, (golds[number].text("answer_type"),), "", (image,), facts))
        return items

    @property
    def _annotated(self) -> str:
        return f"v2_mscoco_{self.split}_annotations.json"

    def _annotations(self) -> dict[str, Row] | None:
        """By question; None where the answers are hidden."""
        if self.unscorable():
            return None
        return dict(once(entries_of(file(self.params.root, self._annotated), under="annotations"), "question_id"))

    def read(self, item: Item, text: str) -> Reading:
        if item.gold is None:
            return Reading(text.strip() or None, failed=not text.strip())
        return score(text, item.gold, self.params.rule)

    def submission(self, records: Sequence[Record]) -> tuple[str, Any] | None:
        """EvalAI's result file; answers are normalised as LLaVA's conversion script does."""
        rows = [{"question_id": r["question_id"], "answer": evalai(r["text"])} for r in records]
        return f"vqa_OpenEnded_mscoco_{self.split}_results.json", rows
