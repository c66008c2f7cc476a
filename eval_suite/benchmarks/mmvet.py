"""MM-Vet (Yu et al. 2024): open questions that need several abilities at once, graded by a judge model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval_suite.benchmark import AnswerBenchmark, Item, Record, Sums
from eval_suite.judge import DRY, Judge, JudgeParams
from eval_suite.released import asked, file, named_of
from eval_suite.scorers.judged import AGAIN, MMVET, grade_of, mmvet_grade, mmvet_prompt
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register


class MmvetParams(Params):
    """``root`` holds mm-vet.json and images/; without a ``judge`` only the submission file is written.

    The published scores come from GPT-4-0613; those of another judge carry its name and are not comparable with them.
    """

    root: RecipePath
    judge: JudgeParams | None = None


@register("benchmark", "mmvet")
class Mmvet(AnswerBenchmark):
    """MM-Vet: mean grade by a judge model and by capability; without a judge, the file for the authors' online
    grader.
    """

    Params = MmvetParams
    main = "score"
    shares = {}  # noqa: RUF012  grades are not shares
    new_tokens = 1024

    def __init__(self, params: MmvetParams) -> None:
        super().__init__(params)
        self.judge = Judge(params.judge, lambda said: grade_of(said) is not None, AGAIN) if params.judge else None

    @property
    def scorer(self) -> str:
        return f"{MMVET} {self.params.judge.model}" if self.params.judge else MMVET

    def unscorable(self) -> str | None:
        if self.judge is None:
            return "no judge was named: hand in the submission file, or name one (judge: {url: …, model: …})"
        return DRY if self.judge.params.dry_run else None

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, "mm-vet.json")
        items = []
        for number, row in named_of(path).items():
            question, image = row.text("question"), path.parent / "images" / row.key("imagename")
            gold, skills = (question, row.text("answer")), tuple(row.texts("capability"))
            items.append(Item(number, asked(image, (Role.QUESTION, question)), gold, skills, images=(image,)))
        return items

    def consult(self, told: Sequence[tuple[Item, str]]) -> None:
        if self.judge:
            self.judge.consult(_asking(item, text) for item, text in told)

    def wanted(self, item: Item) -> str:
        return item.gold[1]

    def read(self, item: Item, text: str) -> Reading:
        if self.judge is None or self.unscorable():
            return Reading(text.strip() or None, failed=not text.strip())
        return mmvet_grade(self.judge.ask(_asking(item, text)))

    def metrics(self, sums: Sums) -> dict[str, Any]:
        return {"score": sums.ratio("grade", "n")}

    def submission(self, records: Sequence[Record]) -> tuple[str, Any] | None:
        return "mm-vet_answers.json", {r["sample"]: r["text"] for r in records}


def _asking(item: Item, text: str) -> str:
    question, truth = item.gold
    return mmvet_prompt(question, truth, text)
