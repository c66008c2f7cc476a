"""PathVQA (He et al. 2020, arXiv 2003.10286): questions about pictures of pathology, from the Parquet files of the hub.

The original release is a pickle, which is never read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eval_suite import parquet
from eval_suite.benchmark import Item
from eval_suite.medical import MedicalBenchmark
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

SOURCE = "the Parquet files of the data set flaviagiammarino/path-vqa on the Hugging Face hub"


class PathVqaParams(Params):
    """``root`` holds SPLIT-*.parquet, or data/ with them: columns ``image``, ``question`` and ``answer``."""

    root: RecipePath
    split: Literal["train", "validation", "test"] = "test"


@register("benchmark", "path_vqa")
class PathVqa(MedicalBenchmark):
    """PathVQA: accuracy on yes-no questions, recall on open ones. The files do not say which questions share a picture,
    so each is a unit by itself.
    """

    Params = PathVqaParams

    def items(self) -> Sequence[Item]:
        files = parquet.parts(self.params.root, self.split, SOURCE)
        rows = [(path, row) for path in files for row in parquet.rows_of(path, leave=("image",))]
        return [self.item(f"{self.split}-{number}", row, path) for number, (path, row) in enumerate(rows, 1)]
