"""HallusionBench (Guan et al. 2024): the same questions on original and edited figures, and without any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval_suite.benchmark import SHORT, AnswerBenchmark, Item, Record, Sums
from eval_suite.judge import DRY, Judge, JudgeParams
from eval_suite.released import Row, asked, entries_of, file, once
from eval_suite.scorers.judged import HALLUSION as JUDGED
from eval_suite.scorers.judged import HALLUSION_PROMPT, hallusion_verdict
from eval_suite.scorers.reading import Reading, right_or_wrong
from eval_suite.scorers.yes_no import HALLUSION, hallusion, settled_yes_no
from factory.data.prompt import Role
from factory.recipe.paths import RecipePath
from factory.registry import Params, register


class HallusionParams(Params):
    """``root`` holds HallusionBench.json and hallusion_bench/ (or its VD/ and VS/); ``judge`` as the authors do, else
    by yes and no.

    ``short`` asks for a single word, as LLaVA-1.5 is asked elsewhere; the authors ask the question alone.
    """

    root: RecipePath
    judge: JudgeParams | None = None
    short: bool = True


@register("benchmark", "hallusionbench")
class HallusionBench(AnswerBenchmark):
    """HallusionBench: aAcc per question, qAcc (a question right on all figures), fAcc (a figure right in all), easy and
    hard.
    """

    Params = HallusionParams
    main = "aAcc"
    beside = ("qAcc", "fAcc", "hard")
    shares = {}  # noqa: RUF012  answers within a set are not independent

    def __init__(self, params: HallusionParams) -> None:
        super().__init__(params)
        self.judge = Judge(params.judge) if params.judge else None

    @property
    def scorer(self) -> str:
        return f"{JUDGED} {self.params.judge.model}" if self.params.judge else HALLUSION

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/{'short' if self.params.short else 'plain'}"

    def items(self) -> Sequence[Item]:
        path = file(self.params.root, "HallusionBench.json")
        rows = once(entries_of(path), "category", "subcategory", "set_id", "figure_id", "question_id")
        return [self._item(path.parent, name, row) for name, row in rows]

    def _item(self, root: Path, name: str, row: Row) -> Item:
        category, visual = row.among("category", "VD", "VS"), row.among("visual_input", "0", "1", "2")
        image = None if visual == "0" else self._image(root, row)
        question = row.text("question")
        prompt = asked(image, (Role.QUESTION, question), (Role.OPTIONS, SHORT if self.params.short else ""))
        unit, figure = "_".join((category, row.text("subcategory"), row.key("set_id"))), row.key("figure_id")
        facts = {
            "question": f"{unit}_{row.key('question_id')}",
            "figure": None if (category, figure) == ("VS", "0") else f"{unit}_{figure}",
            "hard": visual == "2",
        }
        label = {"1": "yes", "0": "no"}[row.among("gt_answer", "0", "1")]
        reference = row.text("gt_answer_details", blank=True) if self.judge else ""
        gold = (label, facts["figure"] is not None, question, reference)
        kinds = (f"{category}/{row.text('subcategory')}",)
        return Item(name, prompt, gold, kinds, unit, (image,) if image else (), facts)

    def _image(self, root: Path, row: Row) -> Path:
        where = f"{row.text('category')}/{row.text('subcategory')}"
        name = row.key("filename") if "filename" in row else f"{where}/{row.key('set_id')}_{row.key('figure_id')}.png"
        inside = name.removeprefix("./").removeprefix("hallusion_bench/")
        return next(
            (p for p in (root / "hallusion_bench" / inside, root / inside) if p.is_file()),
            root / "hallusion_bench" / inside,
        )

    def unscorable(self) -> str | None:
        return DRY if self.judge and self.judge.params.dry_run else None

    def consult(self, told: Sequence[tuple[Item, str]]) -> None:
        if self.judge:
            self.judge.consult(_judged(item, text) for item, text in told)

    def wanted(self, item: Item) -> str:
        return item.gold[0]

    def read(self, item: Item, text: str) -> Reading:
        label, shown, _, _ = item.gold
        if self.judge and not self.unscorable():
            said = self.judge.ask(_judged(item, text))
            if said is None:
                return replace(right_or_wrong(None, False), again=True)
            return hallusion(hallusion_verdict(said), shown)
        said = settled_yes_no(text)
        return hallusion(None if said is None else said == label, shown)

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        groups = {
            "question": _whole(members, "question"),
            "figure": _whole([m for m in members if m["figure"]], "figure"),
            "easy": _whole([m for m in members if not m["hard"]], "question"),
            "hard": _whole([m for m in members if m["hard"]], "question"),
        }
        sums = {"right": sum(m["sums"]["right"] for m in members), "n": float(len(members))}
        return sums | {
            f"{name}/{what}": float(x)
            for name, found in groups.items()
            for what, x in (("right", sum(found)), ("n", len(found)))
        }

    def metrics(self, sums: Sums) -> dict[str, Any]:
        kinds = {"qAcc": "question", "fAcc": "figure", "easy": "easy", "hard": "hard"}
        return {"aAcc": sums.ratio("right", "n")} | {
            name: sums.ratio(f"{kind}/right", f"{kind}/n") for name, kind in kinds.items()
        }


def _judged(item: Item, text: str) -> str:
    _, _, question, reference = item.gold
    return HALLUSION_PROMPT.format(question, reference, text)


def _whole(members: Iterable[Record], by: str) -> list[bool]:
    """For each group of answers whether all of them are right."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for member in members:
        groups[member[by]].append(member["sums"]["right"] == 1)
    return [all(group) for group in groups.values()]
