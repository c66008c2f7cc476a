"""A conflict benchmark under ``benchmarks:``: its samples asked as questions, with no direction that one steers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from eval_suite.benchmark import AnswerBenchmark, Item, Record, Sums
from eval_suite.released import Question
from eval_suite.results import ORDERS, ratio_of
from eval_suite.scorers.conflict import NEITHER, UNKNOWN, agree
from eval_suite.scorers.reading import Reading
from factory.benchmark import Conflicts
from factory.data.prompt import Prompt, Role
from factory.data.sample import ConflictSample
from factory.registry import Params


class ConflictQuestions(AnswerBenchmark):
    """The samples of a split of a conflict benchmark as questions: the shares of answers that follow either source
    (``vision`` or ``text``), that flag the conflict, that say something else and that are an error, and
    ``vision_ratio`` S_v / (S_v + S_t). Of two texts the metrics bear their names.

    ``wanted`` is the verdict that stands for the benchmark, if it is not the first source. Where a sample is asked in
    several forms its verdicts must agree, as under ``data:``, and ``first_option`` is the share of answers for option
    A where both orders name an option (0.5: no bias). A picture that several samples show is one unit.

    With ``alone`` each sample is asked of either modality alone too: ``known`` is the share, and ``known_n`` the
    number, of samples answered rightly from each, and ``known_ratio`` their S_v / (S_v + S_t). The other shares are
    of the whole prompts.
    """

    without_interval = ("known_n",)

    def __init__(
        self, benchmark: Conflicts, wanted: str | None = None, split: str = "test", *, alone: bool = False
    ) -> None:
        super().__init__(Params())
        self.sources = benchmark.sources.names
        self.verdicts = (*self.sources, *NEITHER)
        self.shares = {verdict: (verdict, "n") for verdict in self.verdicts}  # type: ignore[misc]  # by its sources
        self.benchmark, self.main, self.asked, self.alone = benchmark, wanted or self.sources[0], split, alone
        self.name = benchmark.name  # type: ignore[misc]  # it stands for a benchmark of any name
        beside = (*self.verdicts, ratio_of(self.sources[0]), *(("known_ratio", "known_n") if alone else ()))
        self.beside = tuple(v for v in beside if v != self.main)

    @property
    def scorer(self) -> str:
        return self.benchmark.scorer

    @property
    def _ordered(self) -> bool:
        """Whether each sample is asked in both orders of its options."""
        return tuple(self.benchmark.forms) == ORDERS

    @property
    def new_tokens(self) -> int:
        return self.benchmark.answer_tokens

    @property
    def protocol(self) -> str:
        return f"{self.benchmark.protocol}/{self.asked}-asked{'/alone-too' * self.alone}"

    @property
    def split(self) -> str:
        return self.asked

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.benchmark.warnings

    def pictures(self, folder: Path) -> list[tuple[str, Path]]:
        return self.benchmark.pictures(folder)

    def items(self) -> Sequence[Item]:
        kinds = ("both", *self.sources) if self.alone else ("both",)
        return [self._item(s, f, kind) for s in self.samples.values() for f in self.benchmark.forms for kind in kinds]

    def _item(self, sample: ConflictSample, form: str, kind: str) -> Item:
        of_form = "" if len(self.benchmark.forms) == 1 else f"/{form}"
        of_kind, facts = ("", {}) if kind == "both" else (f"/{kind}", {"alone": kind})
        shown = sample.images[0].name if sample.images else sample.id
        unit = str(sample.tags.get("picture", shown))
        words = [(int(Role.QUESTION), sample.question)]
        heard = sample.contexts if kind == "both" else {kind: sample.contexts[kind]} if kind in sample.contexts else {}
        words += [(int(sample.sources[name].role), text) for name, text in heard.items()]
        prompt = Question(tuple(words), partial(self._prompt, sample, form, kind))
        gold = (sample.id, form, sample.answer_vision, sample.answer_text)
        about = {"conflict": sample.id, "form": form, **facts, **sample.tags}
        images = sample.images if kind != self.sources[1] else ()
        return Item(f"{sample.id}{of_form}{of_kind}", prompt, gold, (sample.task,), unit, images, about)

    def _prompt(self, sample: ConflictSample, form: str, kind: str) -> Prompt:
        if kind == "both":
            return self.benchmark.prompt(sample, form)
        return self.benchmark.alone(sample, form, kind)

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

    def by_sample(self, members: Sequence[Record]) -> dict[str, dict[str, Record]]:
        """Records by sample, and by what they were asked with: both, or the name of a source."""
        told: dict[str, dict[str, Record]] = defaultdict(dict)
        for member in members:
            told[member["conflict"]][member.get("alone", "both")] = member
        return told

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        asked: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for member in sorted(members, key=lambda m: self.benchmark.forms.index(m["form"])):
            asked[member["conflict"]][member.get("alone", "both")].append(member["parsed"])
        sums: dict[str, float] = defaultdict(float)
        for verdicts in asked.values():
            if "both" not in verdicts:
                continue
            found = agree(verdicts["both"])
            sums["other" if found == UNKNOWN else found] += 1
            sums["n"] += 1
            first, second = self.sources
            if self._ordered and all(verdict in self.sources for verdict in verdicts["both"]):
                one, two = verdicts["both"]
                sums["first"] += (one == first) + (two == second)
                sums["named"] += 2
            if all(name in verdicts and agree(verdicts[name]) == name for name in self.sources):
                sums["known"] += 1
                sums[f"known/{found}"] += 1
        return sums

    def metrics(self, sums: Sums) -> dict[str, Any]:
        first, second = self.sources
        shares = {verdict: sums.ratio(verdict, "n") for verdict in self.verdicts}
        metrics = {**shares, ratio_of(first): _ratio(sums, first, second)}
        if self._ordered:
            metrics["first_option"] = sums.ratio("first", "named")
        if self.alone:
            metrics["known_ratio"] = _ratio(sums, f"known/{first}", f"known/{second}")
            metrics |= {"known": sums.ratio("known", "n"), "known_n": sums["known"]}
        return metrics


def _ratio(sums: Sums, first: str, second: str) -> Any:
    """S_v / (S_v + S_t)."""
    return Sums({"first": sums[first], "sides": sums[first] + sums[second]}).ratio("first", "sides")
