"""Which Source Wins (arXiv 2608.17205): 229 charts of ChartQA, each with a report that says another number, as the
authors release them.

Prompts, scoring and the levels of legibility are those of the released code (github.com/Ro-netizen004/
multimodal-arbitration-artifact at fe73af7: scripts/run_chartqa_conflict.py, src/noise.py, src/text_noise.py). A level
is made of the clean chart, or of the clean report, when it is asked. Splits are ours.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from os.path import isfile
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import AfterValidator, Field

from eval_suite.benchmark import Record, Sums
from eval_suite.benchmarks.conflicts import SPLITS, DividedParams, divide
from eval_suite.benchmarks.fluency import negative_log_likelihoods
from eval_suite.conflict import BLANK, ConflictBenchmark, Scoring
from eval_suite.conflict_questions import ConflictQuestions
from eval_suite.elsewhere import Left, Told, ours, said
from eval_suite.released import Row, file, lines_of, once
from eval_suite.scorers import chartqa_conflict as rule
from factory.benchmark import Questions
from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.model.view import ModelView
from factory.recipe.nodes import distinct
from factory.recipe.paths import RecipePath
from factory.registry import register
from factory.run.samples import unfit

SOURCE = "data/chartqa_conflict of github.com/Ro-netizen004/multimodal-arbitration-artifact"
NEUTRAL = "You are given two conflicting evidence sources. Neither source is privileged."
ENDING = (
    "Select exactly one source-supported answer, even though the sources disagree. "
    "Do not abstain, hedge, combine the answers, or list alternatives. "
    "Respond with exactly one line in the form '#### <answer>'. "
    "After ####, copy only the bare answer value (for example, 3.89 or 12.8%); "
    "do not include words, source names, or an explanation."
)
ONLY_CHART = "Use the attached chart as the only evidence source."
ONLY_REPORT = "Use the following report as the only evidence source:"
ONE_ENDING = (
    "Respond with exactly one line in the form '#### <answer>'. "
    "After ####, give only the answer value; do not explain your reasoning."
)
SEED = 42  # of the first chart's noise, and one more for each that follows
BLUR = {0: 0.0, 2: 1.0, 4: 2.0, 5: 3.0}  # radius in pixels
NOISE = {4: 15.0, 5: 25.0}  # standard deviation in grey values
CONTRAST = {5: 0.7}  # what is left of it
CORRUPTED = {0: 0.0, 2: 0.08, 4: 0.18, 5: 0.35}  # share of a report's characters
NAMES = {0: "clean", 2: "light", 4: "medium", 5: "heavy"}
LETTERS = string.ascii_letters + string.digits

Level = Literal[0, 2, 4, 5]


class ChartParams(DividedParams):
    """``root`` holds items.jsonl and images/. Each chart is asked at each of the ``levels`` of legibility, clean at 0,
    with light, medium and heavy degradation at 2, 4 and 5, of the ``arm``: the image (blur, noise, contrast) or the
    text (characters replaced or lost).

    ``margins``: under ``benchmarks:``, how much likelier the model without steering holds the report's answer than the
    chart's (CLL), beside its answers. ``test_share`` of the charts are test and ``dev_share`` of the rest dev, as
    ``seed`` draws them. ``asked``: the split that ``benchmarks:`` asks, or all, as the authors do; with ``alone`` it
    asks each chart and each report alone too.
    """

    root: RecipePath = Field(RecipePath("data/chartqa_conflict"), validate_default=True)
    levels: Annotated[tuple[Level, ...], Field(min_length=1), AfterValidator(distinct)] = (0,)
    arm: Literal["image", "text"] = "image"
    margins: bool = True
    alone: bool = False


@dataclass(frozen=True)
class Entry:
    """One line of the file: where it stands and what it says. ``first`` is the source called A, chart or report."""

    place: str
    number: int
    question: str
    chart: str
    report: str
    said: str
    unit: str
    first: str
    image: str

    @property
    def id(self) -> str:
        return f"chart-{self.number:03d}"


@register("benchmark", "chartqa_conflict")
class ChartConflicts(ConflictBenchmark):
    """Real charts against reports that say another number (Which Source Wins), at levels of legibility."""

    Params = ChartParams
    params: ChartParams
    scorer: ClassVar[str] = rule.RULE
    scoring: Scoring = "open_ended"
    answer_tokens = 128  # what the released code allows
    typical_words, longest_words = 127.0, 211.0

    @property
    def protocol(self) -> str:
        return f"{self.name}/prompt-2/{self.params.arm}/L{'+'.join(map(str, self.params.levels))}{self.params.control}"

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        return {name: {**changes, "margins": False} for name, changes in BLANK.items()}

    @cached_property
    def folder(self) -> Path:
        return file(self.params.root, "items.jsonl", source=SOURCE).parent

    @cached_property
    def entries(self) -> list[Entry]:
        """The items of the released file. Raises ``UserError`` for one that is missing or damaged."""
        return [_entry(row) for _, row in once(lines_of(self.folder / "items.jsonl"), "conflict_id")]

    @cached_property
    def splits(self) -> dict[str, list[Entry]]:
        """The charts of each split."""
        if len(self.entries) < len(SPLITS):
            raise UserError(f"{self.folder}: {len(self.entries)} charts; train, dev and test need one each")
        p = self.params
        drawn = divide([["chart"]] * len(self.entries), p.test_share, p.dev_share, p.seed)
        parts = {split: [e for e, own in zip(self.entries, drawn, strict=True) if own == split] for split in SPLITS}
        return {**parts, "all": self.entries}

    def samples(self, split: str) -> Sequence[ConflictSample]:
        return [self._sample(e, level) for level in self.params.levels for e in self.splits[split]]

    def _sample(self, e: Entry, level: Level) -> ConflictSample:
        of_image, path = self.params.arm == "image", self.folder / e.image
        report = e.said if of_image else corrupted(e.said, level, e.number)
        load = self.params.load(partial(_picture, path, level if of_image else 0, SEED + e.number))
        tags: dict[str, int | str] = {"item": e.number, "level": level, "unit_class": e.unit, "first": e.first}
        texts = (e.question, report, e.chart, e.report)
        return ConflictSample(f"{e.id}-L{level}", f"{NAMES[level]}", *texts, load, tags, (path,), e.place)

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        lost = [s for s in samples if not isfile(s.images[0])]
        first = ", ".join(s.place for s in lost[:3]) + ", …" * (len(lost) > 3)
        return [s.id for s in lost], f"charts that are not in {self.folder / 'images'}: those of {first}. Get {SOURCE}"

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        """The released neutral prompt: chart and report are Source A and B as the item has it. Without one of them it
        is the released prompt of the other alone.
        """
        chart_first = sample.tags["first"] == "chart"
        chart, report = ("A", "B") if chart_first else ("B", "A")
        both = {role: "" for role in (Role.IMAGE, Role.CONTEXT)}
        sources = (
            _part(f"Source {chart} is the attached chart.", both | {Role.CONTEXT: ONLY_CHART}),
            Segment(
                Role.CONTEXT,
                f"Source {report} is the textual report below:\n{sample.context}",
                lacking=((Role.IMAGE, f"{ONLY_REPORT}\n{sample.context}"),),
            ),
        )
        return Prompt(
            (
                Segment(Role.IMAGE, image=sample.load_image()),
                Segment(Role.QUESTION, f"Question: {sample.question}\n"),
                _part(NEUTRAL, both),
                *(sources if chart_first else sources[::-1]),
                _part(f"\n{ENDING}", dict.fromkeys(both, f"\n{ONE_ENDING}")),
            )
        )

    def example(self, sample: ConflictSample, form: str, direction: str) -> Prompt:
        """With the mark that is asked for, which an answer leaves out: both directions would share it."""
        marked = Segment(Role.ANSWER, f"#### {self.answer(sample, form, direction)}")
        return self.prompt(sample, form).append(marked)

    def judge(self, sample: ConflictSample, form: str, text: str) -> str:
        """The verdict by ``chartqa-conflict/2``: vision, text, unknown (neither), other (both), error (unreadable)."""
        sides = (sample.answer_vision, sample.answer_text)
        return rule.FOLLOWS[rule.follows(text, *sides, str(sample.tags["unit_class"]))]

    @cached_property
    def of_number(self) -> dict[int, Entry]:
        return {e.number: e for e in self.entries}

    def released_answer(self, row: Row) -> Told | Left | None:
        """A row of results/ in the released repository: of its level of legibility, whatever ``levels`` are asked."""
        if "i" not in row or "prediction" not in row:
            return None
        number, text = row.whole("i"), said(row, "prediction")
        if (e := self.of_number.get(number)) is None:
            return Left(row.place, f"no item {number}; the released items leave out what their audit excluded")
        level = row.whole("level") if "level" in row else 0
        found = rule.follows(text, e.chart, e.report, e.unit)
        name, task = f"{e.id}-L{level}", NAMES.get(level, f"level {level}")
        verdict = ours(rule.FOLLOWS[found])
        if "follows" not in row:
            return Told(row.place, name, task, (text,), verdict, found)
        released = row.among("follows", *rule.FOLLOWS)
        return Told(row.place, name, task, (text,), verdict, found, released, ours(rule.FOLLOWS[released]))

    def as_questions(self) -> Questions:
        return ChartQuestions(self, self.params.followed, self.params.asked, alone=self.params.alone)


class ChartQuestions(ConflictQuestions):
    """The charts as questions. ``cll_margin`` is the mean over charts of log p(report's answer) less log p(chart's),
    each a mean over its tokens in nats, by the model without steering: above 0 it favours the report. Charts whose
    prompt leaves the model no room for an answer, or lacks a source, are no part of it.
    """

    benchmark: ChartConflicts

    @cached_property
    def of_words(self) -> dict[tuple[str, str], ConflictSample]:
        return {(s.question, s.context): s for s in self.samples.values()}

    def inspect(self, view: ModelView, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[dict[str, Any]]:
        return [self._margin(view, prompt) if self.benchmark.params.margins else {} for prompt in prompts]

    def _margin(self, view: ModelView, prompt: Prompt) -> dict[str, Any]:
        said = {role: [s.text for s in prompt.segments if s.role == role] for role in (Role.QUESTION, Role.CONTEXT)}
        if not (prompt.images and said[Role.CONTEXT]):
            return {}  # a method that asks with one source alone
        words = (
            said[Role.QUESTION][-1].removeprefix("Question: ").rstrip("\n"),
            said[Role.CONTEXT][-1].partition("\n")[2],
        )
        sample = self.of_words[words]
        sides = (sample.answer_text, sample.answer_vision)
        if unfit(view, [prompt.append(Segment(Role.ANSWER, side)) for side in sides]):
            return {}  # the prompt fits, and leaves no room for an answer
        (text, of_text), (chart, of_chart) = negative_log_likelihoods(view, [prompt] * 2, sides)
        return {
            "cll_text": -text / of_text,
            "cll_image": -chart / of_chart,
            "margin": chart / of_chart - text / of_text,
        }

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        margins = [m["margin"] for m in members if "margin" in m]
        return {**super().unit_sums(members), "margin": sum(margins), "margins": float(len(margins))}

    def metrics(self, sums: Sums) -> dict[str, Any]:
        measured = self.benchmark.params.margins and np.any(sums["margins"])
        margin = {"cll_margin": sums.ratio("margin", "margins")} if measured else {}
        return {**super().metrics(sums), **margin}


def _part(text: str, lacking: Mapping[Role, str]) -> Segment:
    return Segment(Role.OPTIONS, text, lacking=tuple(lacking.items()))


def degraded(image: Image.Image, level: int, seed: int) -> Image.Image:
    """The chart at a level of legibility: blurred, then with normal noise, then with less contrast."""
    if BLUR[level]:
        image = image.filter(ImageFilter.GaussianBlur(BLUR[level]))
    if level in NOISE:
        clean = np.asarray(image, dtype=np.float32)
        noise = np.random.RandomState(seed).normal(0, NOISE[level], clean.shape)  # the released pictures' generator
        image = Image.fromarray((clean + noise).clip(0, 255).astype(np.uint8))
    return ImageEnhance.Contrast(image).enhance(CONTRAST[level]) if level in CONTRAST else image


def corrupted(report: str, level: int, seed: int) -> str:
    """The report at a level of legibility: of its characters but spaces some are replaced, as many are lost."""
    share, rng, out = CORRUPTED[level], Random(seed), []
    for character in report if share else "":
        if character.isspace() or rng.random() >= share:
            out.append(character)
        elif rng.random() < 0.5:
            out.append(rng.choice(LETTERS))
    return "".join(out) if share else report


def _picture(path: Path, level: int, seed: int) -> Image.Image:
    try:
        return degraded(pictures.load(path), level, seed)
    except pictures.Unreadable as error:
        raise OSError(f"{error}; get it again from {SOURCE}") from error


def _entry(row: Row) -> Entry:
    labels: Mapping[str, str] = {row.among("chart_source_label", "A", "B"): "chart"}
    if row.among("report_source_label", "A", "B") in labels:
        raise row.fault("chart and report are both the same source")
    question, chart, report, said, unit = (
        row.text(name) for name in ("question", "chart_answer", "report_answer", "text_report", "unit_class")
    )
    image = row.key("image_file")
    first = labels.get("A", "report")
    return Entry(row.place, row.whole("conflict_id"), question, chart, report, said, unit, first, image)
