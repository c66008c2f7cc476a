"""VLind-Bench (Lee et al., arXiv 2406.08702): pictures that contradict common sense, asked about in four stages, as the
authors release them.

1. Common sense (CK), with a picture of the world as it is. 2. Perception (VP), with the odd picture. 3. Common-sense
bias (CB), with the odd picture and a text that says the same. 4. Language prior (LP), with the odd picture alone.

Prompts and scoring are those of the released code (github.com/klee972/VLind-Bench at 62bf96e). No text contradicts a
picture here, the text of stage 3 agrees with it; so there is none to steer toward, and it stands under ``benchmarks:``
alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from eval_suite.benchmark import AnswerBenchmark, Item, Record, Sums
from eval_suite.released import Row, asked, entries_of, file, once
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.vlind_bench import RULE, answer
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

NAMES = ("data.json", "VLind-Bench Dataset/data.json")
SOURCE = "data.json and images/ of the data set klee972/VLind-Bench on the Hugging Face hub"
SEEN, TOLD = "the image", "the context"
ONLY = "Only respond in True or False."
STYLES = {"photorealistic": range(4), "illustration": range(4, 8), "cartoon": range(8, 12), "all": range(12)}


class VlindParams(Params):
    """``root`` holds data.json and images/ (or its counterfactual/ and factual/). A picture is asked where at least
    ``votes`` people found it good, and is of the ``style``.

    ``reversed``: the prompts that the authors give InstructBLIP, which begin with how to answer and do not ask to
    forget common sense.
    """

    root: RecipePath = Field(RecipePath("data/vlind-bench"), validate_default=True)
    votes: PositiveInt = 2
    style: Literal["all", "photorealistic", "illustration", "cartoon"] = "all"
    reversed: bool = False


@register("benchmark", "vlind_bench")
class VlindBench(AnswerBenchmark):
    """VLind-Bench: ``s_ck`` and ``s_vp`` of all instances, ``s_cb`` of those that pass CK, ``s_lp`` of those that pass
    all three; ``cb`` and ``lp`` of all, whatever they pass. Of LP each instance counts its share of pictures.
    """

    Params = VlindParams
    scorer = RULE
    main = "s_lp"
    beside = ("s_cb", "s_vp", "s_ck", "lp", "cb")
    shares = {}  # noqa: RUF012  the pictures of one instance are not independent
    new_tokens = 64  # what the released code allows

    @property
    def profile(self) -> str:  # type: ignore[override]  # others have one for all
        return "reversed" if self.params.reversed else "released"

    @property
    def split(self) -> str:
        return f"{self.params.style}-{self.params.votes}-votes"

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, *NAMES, source=SOURCE)
        rows = once(entries_of(path), "global_id")
        images = next((place for place in (path.parent / "images", path.parent) if place.is_dir()), path.parent)
        return [item for name, row in rows for item in self._instance(images, name, row)]

    def _instance(self, images: Path, name: str, row: Row) -> Iterator[Item]:
        votes, styles = row.inner("aggregated_human_label_good_images"), map(str, STYLES[self.params.style])
        good = [i for i in styles if i in votes and votes.whole(i) >= self.params.votes]
        if not good:
            return
        concept, number = row.key("concept"), row.key("context_id")
        told = row.text("context")
        odd = images / "counterfactual" / concept / f"{number}_{told}"
        usual = images / "factual" / concept / f"{number}_{row.text('factual_context')}" / "0.jpg"
        best = odd / f"{row.key('best_img_id')}.jpg"
        holds, contradicts = row.text("true_statement"), row.text("false_statement")
        nouns = [f"There is {row.text(noun)} in the given image." for noun in ("existent_noun", "non-existent_noun")]
        stages: list[tuple[str, Path, Sequence[str], str, bool, str]] = [
            (
                "a",
                usual,
                (contradicts, holds),
                "common sense" if self.params.reversed else "the common sense",
                False,
                "",
            ),
            ("b", best, nouns, SEEN, False, ""),
            ("c", best, (holds, contradicts), TOLD, True, told),
            *(("d", odd / f"{i}.jpg", (holds, contradicts), SEEN, True, "") for i in good),
        ]
        for stage, image, pair, by, forget, context in stages:
            for wanted, statement in zip(("True", "False"), pair, strict=True):
                part = f"{stage}{1 if wanted == 'True' else 2}" + (f"/{image.stem}" if stage == "d" else "")
                prompt = asked(image, *self._asked(statement, by, forget, context))
                facts = {"stage": stage, "shown": image.stem if stage == "d" else ""}
                yield Item(f"{name}/{part}", prompt, wanted, (concept,), name, (image,), facts)

    def _asked(self, statement: str, by: str, forget: bool, context: str) -> list[tuple[Role, str]]:
        whether = f"Based on {by}, is the given statement true or false?"
        if self.params.reversed:
            ends = (ONLY, whether)
        else:
            also = f" Forget real-world common sense and just follow the information provided in {by}." * forget
            ends = ("", f"{whether}{also} {ONLY}")
        about = f"Context: {context}" if context else ""
        return [
            (Role.OPTIONS, ends[0]),
            (Role.CONTEXT, about),
            (Role.QUESTION, f"Statement: {statement}"),
            (Role.OPTIONS, ends[1]),
        ]

    def read(self, item: Item, text: str) -> Reading:
        said = answer(text)
        right = float(said == item.gold)
        return Reading(said, {"right": right}, right, failed=said is None)

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        right: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for member in members:
            right[member["stage"], member["shown"]].append(member["sums"]["right"] == 1)
        passed = {key: len(both) == 2 and all(both) for key, both in right.items()}
        a, b, c = (float(passed.get((stage, ""), False)) for stage in "abc")
        of_pictures = [both for (stage, _), both in passed.items() if stage == "d"]
        d = sum(of_pictures) / len(of_pictures) if of_pictures else 0.0
        return {"a": a, "b": b, "c": c, "d": d, "ac": a * c, "abc": a * b * c, "abcd": a * b * c * d, "units": 1.0}

    def metrics(self, sums: Sums) -> dict[str, Any]:
        return {
            "s_lp": sums.ratio("abcd", "abc"),
            "s_cb": sums.ratio("ac", "a"),
            "s_vp": sums.ratio("b", "units"),
            "s_ck": sums.ratio("a", "units"),
            "lp": sums.ratio("d", "units"),
            "cb": sums.ratio("c", "units"),
        }
