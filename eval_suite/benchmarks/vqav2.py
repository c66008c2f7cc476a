"""VQAv2 (Goyal et al. 2017): open questions on COCO images, ten human answers each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Record
from eval_suite.released import asked, field_of, file, read_json
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vqa import OFFICIAL, evalai, score
from factory.data.prompt import Role
from factory.registry import Params, register


class VqaParams(Params):
    """``root`` holds the released JSON files and the image folder; ``rule`` ``vqa-evalai/1`` scores as the server and
    LLaVA do.
    """

    root: str
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

    def missing(self) -> str | None:
        return None if self.split == "val2014" else "the answers are hidden: hand in the submission file"

    def items(self) -> Sequence[Item]:
        root, split = self.params.root, self.params.split
        path = file(root, f"v2_OpenEnded_mscoco_{split}_questions.json")
        golds: dict[int, Any] = {}
        if self.missing() is None:
            golds = {
                a["question_id"]: a for a in read_json(file(root, f"v2_mscoco_{split}_annotations.json"))["annotations"]
            }
        coco = "test2015" if split.startswith("test") else split
        items = []
        for row in field_of(path, read_json(path), "questions")[0]:
            number, image_id, question = field_of(path, row, "question_id", "image_id", "question")
            gold = golds.get(number)
            image = path.parent / coco / f"COCO_{coco}_{image_id:012d}.jpg"
            prompt = asked(image, (Role.QUESTION, question), (Role.OPTIONS, SHORT))
            humans = [a["answer"] for a in gold["answers"]] if gold else None
            items.append(
                Item(
                    str(number),
                    prompt,
                    humans,
                    (gold["answer_type"],) if gold else (),
                    images=(image,),
                    facts={"question_id": number},
                )
            )
        return items

    def read(self, item: Item, text: str) -> Reading:
        if item.gold is None:
            return Reading(text.strip() or None, failed=not text.strip())
        return score(text, item.gold, self.params.rule)

    def submission(self, records: Sequence[Record]) -> tuple[str, Any] | None:
        """EvalAI's result file; answers are normalised as LLaVA's conversion script does."""
        rows = [{"question_id": r["question_id"], "answer": evalai(r["text"])} for r in records]
        return f"vqa_OpenEnded_mscoco_{self.split}_results.json", rows
