"""Words or Vision (Deng et al., CVPR 2025, arXiv 2503.02199): questions about pictures with a text that is corrupted,
matches or is irrelevant, as the authors release them.

Texts, prompts and scoring are those of the released code (github.com/d-ailin/blind-faith-in-text at 4208bfb). The
answer that a corrupted text gives is the released one, ``changed_ans``. Splits and tasks are ours.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from eval_suite import coco, parquet
from eval_suite.benchmark import Record, Sums
from eval_suite.benchmarks.conflicts import SPLITS, DividedParams, by_picture
from eval_suite.conflict import BLANK, ConflictBenchmark, Scoring
from eval_suite.conflict_questions import ConflictQuestions
from eval_suite.elsewhere import Left, Told, ours, said
from eval_suite.released import Row, file, lines_of, once
from eval_suite.scorers import words_or_vision as rule
from factory.benchmark import Questions
from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.recipe.paths import RecipePath
from factory.registry import register

SOURCE = "raw_code/syth_response of github.com/d-ailin/blind-faith-in-text"
HUB = "dal-289/word_or_vision on the Hugging Face hub"
PLACES = ("raw_code/syth_response", "syth_response", "")
FOLDERS = {"VQAv2": "lmms-lab/VQAv2", "DocVQA": "lmms-lab/DocVQA/DocVQA"}
TEXTS = "gpt-4o-2024-05-13/contradict_stat.jsonl"
IRRELEVANT = "irrel_wikitext.jsonl"
CAUTION = (
    "Here are some additional information which are text descriptions based on the image to assist you for answering"
    " the later question. Note, the information could be irrelevant, missing some information or inaccurate, please use"
    " it with caution:"
)
RULER = "-" * 10
ASKS = {
    "VQAv2": "Please only output the answer with a single word or phrase.",
    "DocVQA": "Please only output the answer directly.",
}
KINDS = {"yes": "yes/no", "no": "yes/no"}


class WordsParams(DividedParams):
    """``root``: the released repository, its raw_code or syth_response. ``images``: COCO 2014 (VQAv2), or the Parquet
    files of dal-289/word_or_vision (VQAv2 and DocVQA), for the pictures.

    ``subset``: the questions' own data set. ``text``: what the text is; match and irrelevant are the authors' controls.
    ``alone``, under ``benchmarks:``, asks each sample of the picture and of the text alone too, for the text preference
    ratio: three prompts a sample.
    """

    root: RecipePath = Field(RecipePath("data/blind-faith-in-text"), validate_default=True)
    images: RecipePath = Field(RecipePath("data/coco"), validate_default=True)
    subset: Literal["VQAv2", "DocVQA"] = "VQAv2"
    text: Literal["corrupted", "match", "irrelevant"] = "corrupted"
    alone: bool = True


@dataclass(frozen=True)
class Entry:
    """One question: where it stands, its text of each kind, the right answers and the corrupted one."""

    place: str
    number: str
    task: str
    question: str
    texts: Mapping[str, str]
    answers: tuple[str, ...]
    corrupted: tuple[str, ...]
    picture: str
    read: parquet.InRow | None = None

    @property
    def id(self) -> str:
        return f"wov-{self.number}"


@register("benchmark", "words_or_vision")
class WordsOrVision(ConflictBenchmark):
    """Words or Vision: does an answer follow the picture, or the text that was corrupted?"""

    Params = WordsParams
    params: WordsParams
    scorer: ClassVar[str] = rule.RULE
    scoring: Scoring = "open_ended"
    answer_tokens = 64  # what the released code allows
    typical_words, longest_words = 66.0, 106.0

    @property
    def protocol(self) -> str:
        return f"{self.name}/prompt-2/{self.params.subset}/{self.params.text}{self.params.control}"

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        both = {"matching text": {"text": "match"}, "irrelevant text": {"text": "irrelevant"}, **BLANK}
        return {name: {**changes, "alone": False} for name, changes in both.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        alike = len(self.read) - len(self.entries)
        told = (
            f"{self.name}: {alike} of {len(self.read):,} questions left out: their two answers are the same by its rule"
        )
        return (told,) if alike else ()

    def _file(self, name: str) -> Path:
        return file(self.params.root, *(f"{at}/{FOLDERS[self.params.subset]}/{name}" for at in PLACES), source=SOURCE)

    @cached_property
    def read(self) -> list[Entry]:
        """All questions of the released files. Raises ``UserError`` for one that is missing or damaged."""
        beside: dict[str, str] = {}
        for row in lines_of(self._file(IRRELEVANT)):  # a question stands there more than once; the first counts
            beside.setdefault(_number(row), row.texts("response")[0])
        shown = self._parquet
        entries = []
        for number, row in once(lines_of(self._file(TEXTS)), "question_id"):
            if (short := _number(row)) not in beside:
                raise row.fault(f"question {number} has no text in {IRRELEVANT}")
            entries.append(self._entry(row, short, beside[short], shown))
        return entries

    @cached_property
    def entries(self) -> list[Entry]:
        """The questions whose right and corrupted answers differ by the benchmark's own rule."""
        return [e for e in self.read if rule.verdict(e.corrupted[0], e.answers, e.corrupted) == "text"]

    def _entry(self, row: Row, number: str, irrelevant: str, shown: Mapping[Any, tuple[Any, Any]]) -> Entry:
        texts = {"corrupted": row.texts("response")[0], "match": row.texts("supp_stat")[0], "irrelevant": irrelevant}
        question, answers = row.text("question"), tuple(row.texts("original_ans"))
        for name, value in {"response": texts["corrupted"], "changed_ans": row.texts("changed_ans")[0]}.items():
            if not value.strip():
                raise row.fault(f"'{name}' says nothing")
        picture, read = f"{int(number) // 1000:012d}" if self.params.subset == "VQAv2" else number, None
        if found := shown.get((question.strip(), texts["corrupted"].strip())):
            answers, read = found
        task = "document" if self.params.subset == "DocVQA" else _task(answers[0])
        corrupted = tuple(row.texts("changed_ans"))
        return Entry(row.place, number, task, question, texts, answers, corrupted, picture, read)

    @cached_property
    def _parquet(self) -> dict[tuple[str, str], tuple[tuple[str, ...], parquet.InRow]]:
        """By question and corrupted text the right answers and the picture of a row of the hub's files, where
        ``images`` holds such.
        """
        subset, folder = self.params.subset, self.params.images.path
        if not any(next(folder.glob(f"{at}{subset}-*.parquet"), None) for at in parquet.PLACES):
            return {}
        found = {}
        for path in parquet.parts(self.params.images, subset, HUB):
            for row in parquet.rows_of(path, leave=("image",)):
                if row.text("text_type") == "corrupted":
                    text = row.text("full_prompt").partition(CAUTION)[2].partition(f"\n{RULER}")[0]
                    read = parquet.InRow(path, int(row.place.rpartition(":")[2]))
                    found[row.text("question").strip(), text.strip()] = (_answers(row), read)
        return found

    @cached_property
    def of_sample(self) -> dict[str, Entry]:
        return {e.id: e for e in self.entries}

    @cached_property
    def splits(self) -> dict[str, list[Entry]]:
        """The questions of each split, each task in proportion; no picture of VQAv2 is in two."""
        drawn = by_picture(((e.picture, e.task) for e in self.entries), self.params, self.params.root)
        ordered = sorted(self.entries, key=lambda e: e.task)
        return {split: [e for e in ordered if drawn[e.picture] == split] for split in SPLITS} | {"all": ordered}

    def samples(self, split: str) -> Sequence[ConflictSample]:
        return [self._sample(e) for e in self.splits[split]]

    def _sample(self, e: Entry) -> ConflictSample:
        folder = self.params.images.path
        path = e.read.path if e.read else coco.find(folder, e.picture)
        load = self.params.load(e.read or partial(self._picture, e))
        tags: dict[str, int | str] = {"picture": e.picture}
        texts = (e.question, e.texts[self.params.text], e.answers[0], e.corrupted[0])
        return ConflictSample(e.id, e.task, *texts, load, tags, (path,) if path else (), e.place)

    def _picture(self, e: Entry) -> Any:
        if self.params.subset == "DocVQA":
            raise pictures.Unreadable(f"no picture of {e.id} in {self.params.images}")
        return coco.picture(self.params.images.path, e.picture)

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        found = {str(s.tags["picture"]): s.images[0] if s.images else None for s in samples}
        do = f"Get the Parquet files of {HUB}"
        if self.params.subset == "VQAv2":
            do += ", or val2014.zip (6 GB) from cocodataset.org"
        line = coco.lacking(
            "Words or Vision", self.params.images.path, found, f"{do}, and name the folder: images=FOLDER"
        )
        return [s.id for s in samples if not s.images], line

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        """The released prompt, in which the text comes before the question; alone, the picture is asked about without
        it, and the text with the same prompt.
        """
        return Prompt(
            (
                Segment(Role.IMAGE, image=sample.load_image()),
                Segment(Role.OPTIONS, CAUTION, lacking=((Role.CONTEXT, ""),)),
                Segment(Role.CONTEXT, sample.context, inline=True),
                Segment(Role.OPTIONS, RULER, lacking=((Role.CONTEXT, ""),)),
                Segment(Role.QUESTION, sample.question),
                Segment(Role.OPTIONS, ASKS[self.params.subset], inline=True),
            )
        )

    def judge(self, sample: ConflictSample, form: str, text: str) -> str:
        """The verdict by ``words-or-vision/1``: vision (right), text (corrupted), other (both), unknown or error."""
        e = self.of_sample[sample.id]
        return rule.verdict(text, e.answers, e.corrupted)

    @cached_property
    def of_question(self) -> dict[str, Entry]:
        return {e.number: e for e in self.read}

    def released_answer(self, row: Row) -> Told | Left | None:
        """A row of raw_code/outputs, or one that the released evaluator writes, with its verdict ``is_correct``. The
        right answers are the row's own.
        """
        name = "output" if "output" in row else "pred_answer"
        if "question_id" not in row or name not in row or not ({"answers", "gt_answers"} & set(row.values)):
            return None
        e = self.of_question.get(_number(row))
        if e is None:
            return Left(row.place, "no question with its number; the evaluator numbers none of the hub's files")
        text, answers = said(row, name), row.texts("answers" if "answers" in row else "gt_answers")
        found = rule.right(text, answers)
        verdict = ours(rule.verdict(text, answers, e.corrupted))
        if "is_correct" not in row:
            return Told(row.place, e.id, e.task, (text,), verdict, found)
        released = row.value("is_correct")
        if not isinstance(released, bool):
            raise row.fault("'is_correct' should be true or false")
        return Told(row.place, e.id, e.task, (text,), verdict, found, released, "vision" if released else "other")

    def as_questions(self) -> Questions:
        return WordsQuestions(self, self.params.followed, self.params.asked, alone=self.params.alone)


class WordsQuestions(ConflictQuestions):
    """The questions, asked with picture and text and, for the preference, with either alone. ``text_preference`` is the
    authors' ratio: of the answers to both that are either that to the text alone or that to the picture alone, the
    share of the former.
    """

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        sums = super().unit_sums(members)
        for told in self.by_sample(members).values():
            if len(told) == 3:
                kind = rule.follows(*(told[asked]["text"] for asked in ("both", "vision", "text")))
                sums[f"own/{kind}"] = sums.get(f"own/{kind}", 0.0) + 1
        return sums

    def metrics(self, sums: Sums) -> dict[str, Any]:
        if not self.alone:
            return super().metrics(sums)
        both = Sums({"text": sums["own/text"], "sides": sums["own/text"] + sums["own/image"]})
        return {**super().metrics(sums), "text_preference": both.ratio("text", "sides")}


def _number(row: Row) -> str:
    """A question's number: VQAv2's own, or the part of DocVQA's before its kinds."""
    return row.key("question_id").partition("/")[0]


def _task(answer: str) -> str:
    """VQA's kind of an answer, by the answer: yes/no, number or other."""
    return KINDS.get(answer.strip().lower(), "number" if answer.strip().isdigit() else "other")


def _answers(row: Row) -> tuple[str, ...]:
    """The right answers: a list, or one written as Python writes it, as the hub's files have it."""
    value = row.value("answers")
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    told = [value] if isinstance(value, str) else value
    if not isinstance(told, list) or not told:
        raise row.fault("'answers' should be a list of texts")
    return tuple(map(str, told))
