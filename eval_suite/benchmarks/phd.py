"""PhD (Liu et al., CVPR 2025, arXiv 2403.11116): yes-or-no questions about COCO pictures alone, with an inaccurate or
an incorrect context, and about generated pictures against common sense, as the authors release them.

Prompts are those of the release (github.com/jiazhen-code/PhD at 4cc31db). No code that scores is released: how an
answer is read, ``phd/1``, is ours, and the PhD index, the harmonic mean of the recalls of yes and no, is as its README
says. Splits are ours. That an incorrect context gives the other answer is what the authors made it for; the files do
not state its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from eval_suite import coco
from eval_suite.benchmark import AnswerBenchmark, Item, Sums, divide
from eval_suite.benchmarks.conflicts import SPLITS, DividedParams, by_picture
from eval_suite.conflict import BLANK, ConflictBenchmark, Scoring
from eval_suite.released import Question, Row, entries_of, file
from eval_suite.scorers import phd as rule
from eval_suite.scorers.reading import Reading
from factory.benchmark import Questions
from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

SOURCE = "data.json of github.com/jiazhen-code/PhD, or of AIMClab-RUC/PhD on the Hugging Face hub"
FOLLOW = "In case there is an inconsistency between the context and the image content, you should follow the image."
CONTEXTS = {"iac": ("iac", "sec"), "icc": ("icc",)}  # names that the release gave its contexts
ASKED = {"yes": "yes_question", "no": "no_question"}


class PhdParams(DividedParams):
    """``root`` holds data.json and ``images`` train2014/, val2014/ and CCS_images/ (default: root/images).

    ``mode``: icc has a context that contradicts the picture, iac one that is beside the point, base none, and ccs
    generated pictures against common sense. Under ``data:`` it is icc, with ``per_task`` pictures of each task.
    ``told``: whether the prompt says to follow the image, as released.
    """

    root: RecipePath = Field(RecipePath("data/phd"), validate_default=True)
    images: RecipePath | None = None
    mode: Literal["base", "iac", "icc", "ccs"] = "icc"
    told: bool = True
    per_task: PositiveInt = 200
    asked: Literal["test", "dev", "all"] = "all"


@dataclass(frozen=True)
class Entry:
    """One entry of a mode: where it stands, its picture, its task, the question to answer with yes and with no."""

    place: str
    number: int
    image_id: str
    task: str
    questions: Mapping[str, str]
    context: str


@register("benchmark", "phd")
class Phd(ConflictBenchmark):
    """PhD: does a yes-or-no answer follow the picture, or a context that contradicts it?"""

    Params = PhdParams
    params: PhdParams
    scorer: ClassVar[str] = rule.RULE
    scoring: Scoring = "open_ended"
    answer_tokens = 32
    typical_words, longest_words = 90.0, 160.0

    @property
    def protocol(self) -> str:
        return f"{self.name}/prompt-2/{self.params.mode}{'' if self.params.told else '/untold'}{self.params.control}"

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        if self.params.mode != "icc":
            return {}
        both = {"no conflict": {"mode": "base"}, "irrelevant text": {"mode": "iac"}, **BLANK}
        return {name: {**changes, "asked": "test"} for name, changes in both.items()}

    @cached_property
    def file(self) -> Path:
        return file(self.params.root, "data.json", source=SOURCE)

    @cached_property
    def folder(self) -> Path:
        return self.params.images.path if self.params.images else self.file.parent / "images"

    @cached_property
    def entries(self) -> list[Entry]:
        """The entries of the mode. Raises ``UserError`` for a file that is missing or damaged, or has none."""
        odd = self.params.mode == "ccs"
        rows = enumerate(entries_of(self.file))
        read = [self._entry(n, row) for n, row in rows if ("ccs_description" in row) == odd]
        if not read:
            raise UserError(f"{self.file}: has no entry of mode {self.params.mode}; is it the released file?")
        return read

    def _entry(self, number: int, row: Row) -> Entry:
        context = ""
        if names := CONTEXTS.get(self.params.mode):
            texts = row.inner("context")
            context = texts.text(next((name for name in names if name in texts), names[0]))
        questions = {answer: row.text(name) for answer, name in ASKED.items()}
        return Entry(row.place, number, row.key("image_id"), row.text("task"), questions, context)

    @cached_property
    def splits(self) -> dict[str, list[Entry]]:
        """``per_task`` pictures of each task, by split; no picture is in two. Those of base, iac and icc are alike."""
        p, chosen = self.params, []
        for task in dict.fromkeys(e.task for e in self.entries):
            own = [e for e in self.entries if e.task == task]
            shown = list(dict.fromkeys(e.image_id for e in own))
            drawn = set(Random(f"phd/{p.seed}/{task}").sample(shown, min(p.per_task, len(shown))))
            chosen += [e for e in own if e.image_id in drawn]
        of = by_picture(((e.image_id, e.task) for e in chosen), p, self.file)
        return {split: [e for e in chosen if of[e.image_id] == split] for split in SPLITS} | {"all": chosen}

    def samples(self, split: str) -> Sequence[ConflictSample]:
        if self.params.mode != "icc":
            raise UserError(
                f"phd: mode {self.params.mode} has no text that contradicts the picture; under data: it is mode icc,"
                " and this one is asked under benchmarks:"
            )
        return [self._sample(e, label) for e in self.splits[split] for label in ASKED]

    def _sample(self, e: Entry, label: str) -> ConflictSample:
        path = self.find(e)
        tags: dict[str, int | str] = {"picture": e.image_id, "label": label}
        texts = (e.questions[label], e.context, label, rule.OTHER[label])
        load = self.params.load(partial(self.picture, e))
        return ConflictSample(_id(e, label), e.task, *texts, load, tags, (path,) if path else (), e.place)

    def find(self, e: Entry) -> Path | None:
        """The entry's picture; None where there is none."""
        if self.params.mode == "ccs":
            path = self.folder / "CCS_images" / f"{e.image_id}.png"
            return path if path.is_file() else None
        return coco.find(self.folder, e.image_id.zfill(12))

    def picture(self, e: Entry) -> Any:
        path = self.find(e)
        if path is None:
            raise FileNotFoundError(f"no picture {coco.brief(e.image_id)} in {self.folder}")
        return pictures.load(path)

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        found = {str(s.tags["picture"]): s.images[0] if s.images else None for s in samples}
        do = (
            "Download train2014.zip and val2014.zip from cocodataset.org, unzip them and name the folder: images=FOLDER"
        )
        return [s.id for s in samples if not s.images], coco.lacking("PhD", self.folder, found, do)

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        return Prompt((Segment(Role.IMAGE, image=sample.load_image()), *self.words(sample.question, sample.context)))

    def words(self, question: str, context: str) -> list[Segment]:
        """The texts of a prompt: the context, what to do where they disagree, and the question, in one line. With one
        source alone nothing is said of the other: with the picture it is that of mode base.
        """
        if not context:
            return [Segment(Role.QUESTION, question)]
        alone = ((Role.CONTEXT, ""), (Role.IMAGE, ""))
        told = [Segment(Role.OPTIONS, FOLLOW, inline=True, lacking=alone)] if self.params.told else []
        return [Segment(Role.CONTEXT, context), *told, Segment(Role.QUESTION, question, inline=True)]

    def answer(self, sample: ConflictSample, form: str, direction: str) -> str:
        said = sample.answer_vision if direction == "vision" else sample.answer_text
        return said.capitalize()

    def judge(self, sample: ConflictSample, form: str, text: str) -> str:
        """The verdict by ``phd/1``: vision, text (the other answer), flags, unknown, or error (says nothing)."""
        return rule.verdict(text, sample.answer_vision)

    def as_questions(self) -> Questions:
        return PhdQuestions(self)


class PhdQuestions(AnswerBenchmark):
    """All questions of a mode. ``index`` is the PhD index, the harmonic mean of ``recall_yes`` and ``recall_no``; an
    answer that is neither yes nor no counts as wrong.
    """

    scorer = rule.RULE
    main = "index"
    beside = ("recall_yes", "recall_no", "accuracy")
    profile = "released"
    new_tokens = Phd.answer_tokens

    def __init__(self, benchmark: Phd) -> None:
        super().__init__(Params())
        self.benchmark = benchmark
        self.name = benchmark.name  # type: ignore[misc]  # it stands for the benchmark

    @property
    def protocol(self) -> str:
        return f"{self.benchmark.protocol}/{self.split}-asked"

    @property
    def split(self) -> str:
        return "all" if self.benchmark.params.mode == "ccs" else self.benchmark.params.asked

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.benchmark.warnings

    def items(self) -> Sequence[Item]:
        of = self.benchmark
        entries = of.entries if self.split == "all" else of.splits[self.split]
        return [self._item(e, label) for e in entries for label in ASKED]

    def _item(self, e: Entry, label: str) -> Item:
        texts = self.benchmark.words(e.questions[label], e.context)
        make = lambda: Prompt(
            (Segment(Role.IMAGE, image=self.benchmark.params.load(partial(self.benchmark.picture, e))()), *texts)
        )
        prompt = Question(tuple((int(segment.role), segment.text) for segment in texts), make)
        at = self.benchmark.find(e) or self.benchmark.folder / f"{e.image_id} (not found)"
        return Item(_id(e, label), prompt, label, (e.task,), e.image_id, (at,))

    def read(self, item: Item, text: str) -> Reading:
        said = rule.answer(text)
        right = float(said == item.gold)
        return Reading(said, {f"{item.gold}/right": right, f"{item.gold}/n": 1.0}, right, failed=said is None)

    def metrics(self, sums: Sums) -> dict[str, Any]:
        yes, no = (sums.ratio(f"{label}/right", f"{label}/n") for label in ASKED)
        right, n = sums["yes/right"] + sums["no/right"], sums["yes/n"] + sums["no/n"]
        index = divide(2 * yes * no, yes + no)
        return {"index": index, "recall_yes": yes, "recall_no": no, "accuracy": divide(right, n)}

    shares: ClassVar[dict[str, tuple[str, str]]] = {}


def _id(e: Entry, label: str) -> str:
    return f"phd-{e.number:05d}-{label}"
