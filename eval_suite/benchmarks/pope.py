"""POPE (Li et al. 2023): is there such an object in the picture? Three ways of drawing the objects that are not
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Sums, divide
from eval_suite.released import asked, file, lines_of, once
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.yes_no import POPE, pope
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.nodes import distinct
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

SPLITS = ("random", "popular", "adversarial")


class PopeParams(Params):
    """``root`` holds coco_pope_{random,popular,adversarial}.json; ``images`` the COCO val2014 folder (default:
    root/val2014).

    ``splits`` to ask, each scored by itself.
    """

    root: RecipePath
    images: RecipePath | None = None
    splits: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(distinct)] = SPLITS


@register("benchmark", "pope")
class Pope(AnswerBenchmark):
    """POPE: accuracy, precision, recall, F1 and yes-ratio by the official rule for each split, and their mean over the
    splits.
    """

    Params = PopeParams
    scorer = POPE
    main = "f1"
    beside = ("accuracy", "yes_ratio")
    shares = {}  # noqa: RUF012  the total is a mean over splits

    @property
    def split(self) -> str:
        """The splits in their usual order, however they were named: their order changes no score."""
        named = self.params.splits
        return "+".join(sorted(named, key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS)))

    def items(self) -> Sequence[Item]:
        return [item for split in self.params.splits for item in self._split(split)]

    def _split(self, split: str) -> list[Item]:
        path = file(self.params.root, f"coco_pope_{split}.json", f"coco_pope_{split}.jsonl")
        folder = self.params.images.directory("images") if self.params.images else path.parent / "val2014"
        items = []
        for number, row in once(lines_of(path), "question_id"):
            image, label = folder / row.key("image"), row.among("label", "yes", "no")
            prompt = asked(image, (Role.QUESTION, row.text("text")), (Role.OPTIONS, SHORT))
            items.append(
                Item(
                    f"{split}/{number}",
                    prompt,
                    (label, split),
                    (split,),
                    images=(image,),
                    facts={"label": label},
                    kept_with=f"{split}/{image.name}",
                )
            )
        if not items:
            raise UserError(f"{path}: holds no question; leave the split out or download it again")
        return items

    def wanted(self, item: Item) -> str:
        return item.gold[0]

    def read(self, item: Item, text: str) -> Reading:
        return pope(text, *item.gold)

    def metrics(self, sums: Sums) -> dict[str, Any]:
        splits = [split for split in self.params.splits if any(name.startswith(f"{split}/") for name in sums.values)]
        each = [confusion(*(sums[f"{split}/{cell}"] for cell in ("tp", "fp", "tn", "fn"))) for split in splits]
        return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def confusion(tp: Any, fp: Any, tn: Any, fn: Any) -> dict[str, Any]:
    """Accuracy, precision, recall, F1 and the share of answers that say yes."""
    n, precision, recall = tp + fp + tn + fn, divide(tp, tp + fp), divide(tp, tp + fn)
    return {
        "accuracy": divide(tp + tn, n),
        "precision": precision,
        "recall": recall,
        "f1": divide(2 * precision * recall, precision + recall),
        "yes_ratio": divide(tp + fp, n),
    }
