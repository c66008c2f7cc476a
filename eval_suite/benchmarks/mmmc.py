"""MMMC (Zhang et al., ICML 2025, arXiv 2507.07151): questions that take for granted what their picture does not show,
as the authors release them.

The conflict is in the question itself: it asks for the colour of a ball where there is none. The right answer says so;
what an answer that goes along would be is not in the files. So there is no second answer to steer toward, and it stands
under ``benchmarks:`` alone. The authors' scoring is not public: a judge is asked with a prompt of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from eval_suite import parquet
from eval_suite.benchmark import AnswerBenchmark, Item, Sums
from eval_suite.judge import DRY, Judge, JudgeParams
from eval_suite.released import Row, asked
from eval_suite.scorers import mmmc as rule
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

SOURCE = "the Parquet files of the data set ustc-zhangzm/MMMC on the Hugging Face hub (MM-Hallu/MMMC has them too)"
NONE = ("", "null", "none")  # how a row without a conflict says so, beside saying nothing


class MmmcParams(Params):
    """``root``: the folder of the released Parquet files. ``split``: as released, test or train.

    ``judge``: who reads the answers; without one they are kept, and nothing is scored.
    """

    root: RecipePath = Field(RecipePath("data/mmmc"), validate_default=True)
    split: Literal["test", "train"] = "test"
    judge: JudgeParams | None = None


@register("benchmark", "mmmc")
class Mmmc(AnswerBenchmark):
    """MMMC, read by a judge: ``notices`` is the share of answers to conflicting questions that say what is wrong,
    ``hallucinates`` that of those which go along, and ``accuracy`` that of right answers where nothing conflicts (the
    control).
    """

    Params = MmmcParams
    profile = "released"
    main = "notices"
    beside = ("hallucinates", "accuracy")
    shares = {  # noqa: RUF012
        "notices": ("notices", "conflicts"),
        "hallucinates": ("hallucinates", "conflicts"),
        "accuracy": ("right", "clean"),
    }
    new_tokens = 128

    def __init__(self, params: MmmcParams) -> None:
        super().__init__(params)
        self.judge = Judge(params.judge, lambda said: rule.verdict(said) is not None) if params.judge else None

    @property
    def scorer(self) -> str:
        return f"{rule.RULE} {self.params.judge.model}" if self.params.judge else rule.RULE

    def unscorable(self) -> str | None:
        if self.judge is None:
            return "no judge was named, and no other rule is public: name one (judge: {url: …, model: …})"
        return DRY if self.judge.params.dry_run else None

    def items(self) -> Sequence[Item]:
        files = parquet.parts(self.params.root, self.split, SOURCE)
        rows = [(path, row) for path in files for row in parquet.rows_of(path, leave=("image",))]
        return [self._item(path, number, row) for number, (path, row) in enumerate(rows)]

    def _item(self, path: Path, number: int, row: Row) -> Item:
        kind = row.text("conflict_type", blank=True) if "conflict_type" in row else ""
        task = "none" if kind.strip().lower() in NONE else row.among("conflict_type", "object", "attribute", "relation")
        question, picture = row.text("question"), row.key("image_id")
        at = parquet.InRow(path, int(row.place.rpartition(":")[2]))
        prompt = asked(at, (Role.QUESTION, question))
        about = row.text("key_component", blank=True) if "key_component" in row else ""
        gold = (task, question, row.text("answer"), about)
        return Item(f"mmmc-{self.split}-{number:05d}", prompt, gold, (task,), picture, (path,), {"conflict": task})

    def consult(self, told: Sequence[tuple[Item, str]]) -> None:
        if self.judge:
            self.judge.consult(_asking(item, text) for item, text in told)

    def wanted(self, item: Item) -> str:
        return item.gold[2]

    def read(self, item: Item, text: str) -> Reading:
        if self.judge is None or self.unscorable():
            return Reading(text.strip() or None, failed=not text.strip())
        return rule.reading(self.judge.ask(_asking(item, text)), item.gold[0] != "none")

    def metrics(self, sums: Sums) -> dict[str, Any]:
        """A share of no question at all is left out."""
        return {name: sums.ratio(above, below) for name, (above, below) in self.shares.items() if np.any(sums[below])}


def _asking(item: Item, text: str) -> str:
    task, question, reference, about = item.gold
    return rule.prompt(task, question, reference, about, text)
