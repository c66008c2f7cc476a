"""What the engine asks of a benchmark: of one of conflicts (``data:``), of one of questions (``benchmarks:``), and of
one whose lessons a model learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from PIL import Image

from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.errors import UserError
from factory.model.view import ModelView
from factory.registry import Plugin

AGREEING = ("matching text", "no conflict")
"""Controls in which both sources say the same, by name."""
Record = dict[str, Any]
Rows = list[Record]
"""Rows as they are made: of results.json, of predictions, of diagnostics."""
Records = Sequence[Mapping[str, Any]]
"""Rows as they are read."""
Answer = Callable[[list[Prompt]], list[str]]


@dataclass(frozen=True)
class Item:
    """One question. ``tasks`` are the groups it is reported under, ``unit`` what is resampled, ``gold`` what the scorer
    needs.

    ``prompt`` reads the pictures only when it is called and raises ``OSError`` where one cannot be read; ``images``
    names their files, so that missing ones are told before anything heavy starts. A prompt whose pictures stand between
    its texts gives ``pictures_first`` too, for models whose chat template writes pictures before texts. A limit asks
    all or none of the questions that bear one name under ``kept_with`` (of a unit, where that is empty).

    A second turn names in ``after`` the question that comes before it: ``follow(prompt, answer)`` makes its prompt of
    that question's prompt and the answer that was given. Its own ``prompt`` is then for people to read alone, and has
    something in the place of the answer.
    """

    id: str
    prompt: Callable[[], Prompt]
    gold: Any = None
    tasks: tuple[str, ...] = ()
    unit: str = ""
    images: tuple[Path, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    pictures_first: Callable[[], Prompt] | None = None
    kept_with: str = ""
    after: str = ""
    follow: Callable[[Prompt, str], Prompt] | None = None


class Benchmark(Plugin):
    """Base of the benchmarks, of whatever sort. ``answer_tokens`` are the most that an answer in its examination takes,
    if it has one.
    """

    answer_tokens: ClassVar[int] = 8

    @property
    def protocol(self) -> str:
        """What a number must share with another to stand beside it."""
        raise TypeError(f"{type(self).__name__} must define protocol")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What has to be known beside every number: shown before the run, in results.json and in the terminal's
        report."""
        return ()

    def pictures(self, folder: Path) -> list[tuple[str, Path]]:
        """Titled pictures of what is asked, written into ``folder``, for the report and for ``show``."""
        return []


class Conflicts(Benchmark):
    """Samples that set two ``sources`` against each other, an image against a text unless it says, each asked in one or
    more ``forms`` of a prompt. ``scorer`` names the rule that reads answers, and its version.
    """

    pictured = True
    scorer: ClassVar[str]
    typical_words: ClassVar[float] = 0.0
    longest_words: ClassVar[float] = 0.0
    """Words of a typical and of the longest prompt, for plans that are made before the samples are there."""

    @classmethod
    def sources_of(cls, params: Any) -> Sources:
        """The two sources that it sets against each other, with parameters ``params``."""
        return PICTURE_AND_TEXT

    @property
    def sources(self) -> Sources:
        """The two sources that it sets against each other: a direction is the name of one."""
        return self.sources_of(self.params)

    @classmethod
    def needs_pictures(cls, params: Any) -> bool:
        return cls.pictured and cls.sources_of(params).pictured

    def samples(self, split: str) -> Sequence[ConflictSample]:
        """The samples of train, dev or test, alike at every call. Raises ``UserError`` where files are missing."""
        raise TypeError(f"{type(self).__name__} must define samples(split)")

    @property
    def forms(self) -> tuple[str, ...]:
        """Names of the prompts that each sample is asked with."""
        raise TypeError(f"{type(self).__name__} must define forms")

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of which the likelier is the answer; none where answers are free."""
        return ()

    @property
    def expected(self) -> Mapping[str, int]:
        """Samples by split as released, for plans that are made before the files are there."""
        return {}

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        """What tells what an answer to a conflict means, by name (no conflict, a text that matches or is irrelevant, a
        blank picture): the parameters of this benchmark that ask it, as questions. None where it can ask none.
        """
        return {}

    @cached_property
    def agreeing(self) -> Conflicts | None:
        """Itself without its conflicts: the control in which both sources say the same; None where it has none."""
        changes = next((self.controls[name] for name in AGREEING if name in self.controls), None)
        return None if changes is None else type(self)(self.params.model_copy(update=dict(changes)))

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        """Ids of the samples whose pictures are not there, told without reading any, and one line about them."""
        return [], ""

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        """The prompt of a form."""
        raise TypeError(f"{type(self).__name__} must define prompt(sample, form)")

    def alone(self, sample: ConflictSample, form: str, modality: str) -> Prompt:
        """The prompt of a form with one modality alone, the source of that name."""
        return self.prompt(sample, form).only(modality)

    def answer(self, sample: ConflictSample, form: str, direction: str) -> str:
        """The canonical answer that follows ``direction``, as a form of the prompt asks for it."""
        raise TypeError(f"{type(self).__name__} must define answer(sample, form, direction)")

    def example(self, sample: ConflictSample, form: str, direction: str) -> Prompt:
        """A worked example: the prompt of a form with the answer that follows ``direction``."""
        raise TypeError(f"{type(self).__name__} must define example(sample, form, direction)")

    def paired(self, sample: ConflictSample, form: str, direction: str) -> Prompt:
        """The prompt that stands for ``direction`` in the benchmark's own contrast (``collect.contrast: pairs``)."""
        raise UserError(f"collect.contrast: '{self.name}' sets no prompts against each other; leave contrast out")

    @property
    def has_pairs(self) -> bool:
        """Whether it has a contrast of its own."""
        return type(self).paired is not Conflicts.paired

    def picture_with(self, sample: ConflictSample, answer: str) -> Image.Image | None:
        """The sample's picture as it would be if it showed ``answer``; None where the benchmark can make none."""
        return None

    def references(self, sample: ConflictSample) -> Sequence[str]:
        """Captions that describe the sample's picture; none where the benchmark has none."""
        return ()

    def judge(self, sample: ConflictSample, form: str, text: str) -> str:
        """The verdict on one answer."""
        raise TypeError(f"{type(self).__name__} must define judge(sample, form, text)")

    def outcome(self, verdicts: Sequence[str], direction: str) -> str:
        """One sample's outcome for who steers toward ``direction``, from the verdicts on all its forms."""
        raise TypeError(f"{type(self).__name__} must define outcome(verdicts, direction)")

    def as_questions(self) -> Questions:
        """Its samples as questions that no direction is steered to, for ``benchmarks:``."""
        raise UserError(f"benchmarks: '{self.name}' sets two sources against each other and belongs under 'data:'")

    def rows(self, predictions: Sequence[Record], **context: Any) -> Rows:
        """Rows of results.json from predictions, one of which is a sample's under one method."""
        raise TypeError(f"{type(self).__name__} must define rows(predictions, **context)")


class Questions(Benchmark):
    """Questions that have a right answer."""

    pictured = True

    @property
    def new_tokens(self) -> int:
        """The most tokens that an answer takes."""
        raise TypeError(f"{type(self).__name__} must define new_tokens")

    @property
    def scorer(self) -> str:
        """The rule that reads answers, and its version."""
        raise TypeError(f"{type(self).__name__} must define scorer")

    @property
    def split(self) -> str:
        """The split that is asked."""
        raise TypeError(f"{type(self).__name__} must define split")

    def unscorable(self) -> str | None:
        """Why nothing can be scored here (hidden answers, no judge); None where scores are possible."""
        return None

    def questions(self, limit: int | None = None) -> list[Item]:
        """The questions that are asked: all, or about ``limit`` of them by whole units. Raises ``UserError`` where
        files are missing or malformed, or hold none.
        """
        raise TypeError(f"{type(self).__name__} must define questions(limit)")

    def inspect(self, view: ModelView, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[dict[str, Any]]:
        """What the model without steering says of the answers, added to their records (perplexity, for one)."""
        return [{} for _ in texts]

    def consult(self, told: Sequence[tuple[Item, str]]) -> None:
        """Ask who must be asked (a judge) about all answers at once, before ``record`` takes them one by one."""

    def record(self, item: Item, text: str) -> Record:
        """One prediction, scored."""
        raise TypeError(f"{type(self).__name__} must define record(item, text)")

    def wanted(self, item: Item) -> str:
        """The right answer in words, for people to read; empty where it is not known, or no words tell it."""
        gold = item.gold
        if isinstance(gold, str):
            return gold
        told = list(dict.fromkeys(gold)) if isinstance(gold, list) else []
        return ", ".join(told) if all(isinstance(each, str) for each in told) else ""

    def about(self, item: Item) -> Sequence[tuple[str, str]]:
        """Titled texts about a question, for people to read beside it."""
        return (("Right answer", wanted),) if (wanted := self.wanted(item)) else ()

    def settle(self, records: Sequence[Record]) -> Sequence[Record]:
        """Scores that need all answers at once (corpus statistics)."""
        return records

    def submission(self, records: Sequence[Record]) -> tuple[str, Any] | None:
        """Name and JSON-able content of the file that the benchmark's server takes; None where there is no server."""
        return None

    def rows(self, records: Sequence[Record], **context: Any) -> Rows:
        """Rows of results.json, one for all records, then one per task; ``context`` is added to each."""
        raise TypeError(f"{type(self).__name__} must define rows(records, **context)")


class Harness(Benchmark):
    """Questions that an evaluation harness of its own asks, of the model as it stands in memory or on disk."""

    def made_of(self) -> Any:
        """What its questions come from, as far as that lies in files of the user's (JSON-able)."""
        return None

    def harness(self, job: Any) -> list[dict[str, Any]]:
        """One result for each task of a ``factory.run.questions.harness.Job``: name, metrics, intervals, n, protocol,
        records; a task's ``part`` ("all" where it is left out) and the metrics shown ``beside`` the main one."""
        raise TypeError(f"{type(self).__name__} must define harness(job)")


@runtime_checkable
class WithLessons(Protocol):
    """A benchmark that also draws what a model can be trained on."""

    name: ClassVar[str]

    def lesson(self, index: int, batch: int, total: int) -> Prompt:
        """Training prompt ``index`` of ``total``, ``batch`` of which are trained on together."""
        ...


@runtime_checkable
class WithTexts(Protocol):
    """A benchmark that draws lessons for a language model alone."""

    def text_lesson(self, index: int, batch: int, total: int) -> Prompt:
        """As ``WithLessons.lesson``, without a picture."""
        ...


@runtime_checkable
class WithPictures(Protocol):
    """A benchmark that draws questions about pictures for a vision tower alone."""

    @property
    def question_words(self) -> Sequence[str]:
        """The words that questions are made of."""
        ...

    @property
    def answers(self) -> Sequence[tuple[str, ...]]:
        """All answers, those of a kind together."""
        ...

    def picture(self, index: int, total: int) -> tuple[Image.Image, tuple[str, ...], str]:
        """Picture ``index`` of ``total``, the words of its question, and the answer."""
        ...


@runtime_checkable
class WithCorpus(Protocol):
    """A benchmark that knows what a tokenizer should know."""

    def corpus(self) -> Sequence[str]:
        """Texts for a tokenizer."""
        ...


@runtime_checkable
class WithExam(Protocol):
    """A benchmark that examines who learnt from it, with answers of at most ``answer_tokens`` tokens."""

    answer_tokens: ClassVar[int]

    def examine(self, answer: Answer, per_task: int | None = None) -> dict[str, dict[str, float]]:
        """Shares in [0, 1] by question and key; ``answer`` gives a model's answers to prompts. With ``per_task`` so
        many samples of each task are asked.
        """
        ...


class Curriculum(WithLessons, WithTexts, WithPictures, WithCorpus, WithExam, Protocol):
    """All that a model can be taught with from random weights on."""
