"""A conflict benchmark under ``benchmarks:``: its samples asked as questions, with no direction that one steers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from eval_suite.benchmark import AnswerBenchmark, Item, Record, Sums
from eval_suite.released import Question
from eval_suite.scorers.conflict import UNKNOWN, VERDICTS, agree
from eval_suite.scorers.reading import Reading
from factory.benchmark import Conflicts
from factory.data.prompt import Role
from factory.data.sample import ConflictSample
from factory.registry import Params


class ConflictQuestions(AnswerBenchmark):
    """The samples of a split of a conflict benchmark as questions: the shares of answers that follow the image
    (``vision``) or the text, that flag the conflict, that say something else and that are an error, and
    ``vision_ratio`` S_v / (S_v + S_t).

    ``wanted`` is the verdict that stands for the benchmark. Where a sample is asked in several forms its verdicts must
    agree, as under ``data:``. A picture that several samples show is one unit.
    """

    shares = {verdict: (verdict, "n") for verdict in VERDICTS}  # noqa: RUF012

    def __init__(self, benchmark: Conflicts, wanted: str = "vision", split: str = "test") -> None:
        super().__init__(Params())
        self.benchmark, self.main, self.asked = benchmark, wanted, split
        self.name = benchmark.name  # type: ignore[misc]  # it stands for a benchmark of any name
        self.beside = tuple(v for v in (*VERDICTS, "vision_ratio") if v != wanted)

    @property
    def scorer(self) -> str:
        return self.benchmark.scorer

    @property
    def new_tokens(self) -> int:
        return self.benchmark.answer_tokens

    @property
    def protocol(self) -> str:
        return f"{self.benchmark.protocol}/{self.asked}-asked"

    @property
    def split(self) -> str:
        return self.asked

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.benchmark.warnings

    def pictures(self, folder: Path) -> list[tuple[str, Path]]:
        return self.benchmark.pictures(folder)

    def items(self) -> Sequence[Item]:
        return [self._item(s, form) for s in self.samples.values() for form in self.benchmark.forms]

    def _item(self, sample: ConflictSample, form: str) -> Item:
        name = sample.id if len(self.benchmark.forms) == 1 else f"{sample.id}/{form}"
        unit = sample.images[0].name if sample.images else sample.id
        words = ((int(Role.QUESTION), sample.question), (int(Role.CONTEXT), sample.context))
        prompt = Question(words, partial(self.benchmark.prompt, sample, form))
        gold = (sample.id, form, sample.answer_vision, sample.answer_text)
        facts = {"conflict": sample.id, "form": form, **sample.tags}
        return Item(name, prompt, gold, (sample.task,), unit, sample.images, facts)

    @cached_property
    def samples(self) -> dict[str, ConflictSample]:
        """The samples that are asked, by id."""
        return {sample.id: sample for sample in self.benchmark.samples(self.split)}

    def read(self, item: Item, text: str) -> Reading:
        name, form, *_ = item.gold
        verdict = self.benchmark.judge(self.samples[name], form, text)
        found = "other" if verdict == UNKNOWN else verdict
        value = float(found == self.main) if len(self.benchmark.forms) == 1 else None
        return Reading(verdict, {}, value, failed=verdict == "error")

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        asked: dict[str, list[str]] = defaultdict(list)
        for member in members:
            asked[member["conflict"]].append(member["parsed"])
        sums: dict[str, float] = defaultdict(float)
        for verdicts in asked.values():
            found = agree(verdicts)
            sums["other" if found == UNKNOWN else found] += 1
            sums["n"] += 1
        return sums

    def metrics(self, sums: Sums) -> dict[str, Any]:
        shares = {verdict: sums.ratio(verdict, "n") for verdict in VERDICTS}
        both = Sums({"vision": sums["vision"], "sides": sums["vision"] + sums["text"]})
        return {**shares, "vision_ratio": both.ratio("vision", "sides")}
