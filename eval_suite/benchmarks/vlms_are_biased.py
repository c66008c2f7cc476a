"""VLMs Are Biased (Vo et al., arXiv 2505.23941): pictures of well-known things changed in one count, such as a shoe
with four stripes, as the authors release them.

Nothing in the prompt contradicts the picture: what does is the model's knowledge. So there is no text that a method
could be steered toward, and it stands under ``benchmarks:`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from eval_suite import parquet
from eval_suite.benchmark import AnswerBenchmark, Item, Sums
from eval_suite.released import Row, asked, once
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vlms_are_biased import RULE, score
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

SOURCE = "the Parquet files of the data set anvo25/vlms-are-biased on the Hugging Face hub"
COPY = re.compile(r"_px\d+|_Q\d+$")  # what tells the resolutions and wordings of one changed thing apart


class BiasedParams(Params):
    """``root``: the folder of the released Parquet files. ``subset``: main and withtitle count, identification asks
    what it is, original shows the thing unchanged (a control), remove_background_* show it cut out.
    """

    root: RecipePath = Field(RecipePath("data/vlms-are-biased"), validate_default=True)
    subset: Literal[
        "main", "identification", "withtitle", "original", "remove_background_q1q2", "remove_background_q3"
    ] = "main"


@register("benchmark", "vlms_are_biased")
class VlmsAreBiased(AnswerBenchmark):
    """VLMs Are Biased: the share of right answers, and ``bias_ratio``, that of the answer which a model gives that
    recalls the thing as it is known. Three resolutions and two wordings of one thing are one unit.
    """

    Params = BiasedParams
    profile = "released"
    scorer = RULE
    beside = ("bias_ratio",)
    shares = {}  # noqa: RUF012  a thing is asked up to six times

    @property
    def new_tokens(self) -> int:
        return 32  # what lmms-eval allows

    @property
    def split(self) -> str:
        return self.params.subset

    def items(self) -> Sequence[Item]:
        files = parquet.parts(self.params.root, self.split, SOURCE)
        rows = [(path, row) for path in files for row in parquet.rows_of(path, leave=("image",))]
        names = [name for name, _ in once((row for _, row in rows), "ID")]
        return [self._item(path, name, row) for name, (path, row) in zip(names, rows, strict=True)]

    def _item(self, path: Path, name: str, row: Row) -> Item:
        number = int(row.place.rpartition(":")[2])
        prompt = asked(parquet.InRow(path, number), (Role.QUESTION, row.text("prompt")))
        gold = (row.key("ground_truth"), row.key("expected_bias"))
        return Item(name, prompt, gold, (row.text("topic"),), COPY.sub("", name), (path,))

    def wanted(self, item: Item) -> str:
        return item.gold[0]

    def read(self, item: Item, text: str) -> Reading:
        return score(text, *item.gold)

    def metrics(self, sums: Sums) -> dict[str, Any]:
        return {"accuracy": sums.ratio("right", "n"), "bias_ratio": sums.ratio("biased", "n")}
