"""Flickr30k captions (Young et al. 2014) on Karpathy's test split of a thousand pictures with five captions each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval_suite.benchmark import AnswerBenchmark, Item, Record, Sums
from eval_suite.released import asked, entries_of, file, once
from eval_suite.scorers.captions import RULE, caption_scores, requirements, spice_missing
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

ASK = "Provide a one-sentence caption for the provided image."
OF_CORPUS = ("BLEU-4", "METEOR")


class Flickr30kParams(Params):
    """``root`` holds dataset_flickr30k.json and flickr30k-images/."""

    root: RecipePath
    split: str = "test"


@register("benchmark", "flickr30k")
class Flickr30k(AnswerBenchmark):
    """Flickr30k: CIDEr, METEOR, BLEU-4, ROUGE-L and, where its parser is installed, SPICE, through pycocoevalcap."""

    Params = Flickr30kParams
    main = "CIDEr"
    beside = ("METEOR",)
    shares = {}  # noqa: RUF012  caption scores are not shares
    without_interval = OF_CORPUS

    @property
    def scorer(self) -> str:
        return f"{RULE} (no SPICE)" if requirements() is None and spice_missing() else RULE

    def unscorable(self) -> str | None:
        return requirements()

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, "dataset_flickr30k.json")
        items = []
        for name, row in once(entries_of(path, under="images"), "filename"):
            if row.text("split") == self.params.split:
                image = path.parent / "flickr30k-images" / name
                captions = [sentence.text("raw", blank=True) for sentence in row.rows("sentences")]
                items.append(Item(name, asked(image, (Role.QUESTION, ASK)), captions, images=(image,)))
        return items

    def read(self, item: Item, text: str) -> Reading:
        return Reading(text.strip() or None, failed=not text.strip())

    def record(self, item: Item, text: str) -> Record:
        return {**super().record(item, text), "references": item.gold}

    def settle(self, records: Sequence[Record]) -> Sequence[Record]:
        """Adds each picture's scores; a corpus score that is no mean rides on the first record alone."""
        if self.unscorable() or not records:
            return records
        corpus, each = caption_scores(
            {r["sample"]: r["text"] for r in records}, {r["sample"]: r["references"] for r in records}
        )
        return [
            {
                **r,
                "value": each["CIDEr"][i],
                "sums": {
                    "n": 1.0,
                    **{k: v[i] for k, v in each.items() if k not in OF_CORPUS},
                    **({f"corpus/{k}": corpus[k] for k in OF_CORPUS} if i == 0 else {}),
                },
            }
            for i, r in enumerate(records)
        ]

    def metrics(self, sums: Sums) -> dict[str, Any]:
        means = {name: sums.ratio(name, "n") for name in sums.values if name != "n" and not name.startswith("corpus/")}
        return means | {name: sums[f"corpus/{name}"] for name in OF_CORPUS}
