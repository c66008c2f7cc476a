"""What the engine asks of a benchmark: of one of conflicts (``data:``) and of one of questions (``benchmarks:``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.registry import Plugin


class Benchmark(Plugin):
    """Base of the benchmarks, of whatever sort."""


class Conflicts(Benchmark):
    """Samples that set an image against a text, each asked in one or more ``forms`` of a prompt."""

    typical_words: ClassVar[float] = 0.0
    longest_words: ClassVar[float] = 0.0
    """Words of a typical and of the longest prompt, for plans that are made before the samples are there."""

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

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        """Ids of the samples whose pictures are not there, told without reading any, and one line about them."""
        return [], ""

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        """The prompt of a form."""
        raise TypeError(f"{type(self).__name__} must define prompt(sample, form)")

    def example(self, sample: ConflictSample, form: str, direction: str) -> Prompt:
        """A worked example: the prompt of a form with the answer that follows ``direction``."""
        raise TypeError(f"{type(self).__name__} must define example(sample, form, direction)")

    def judge(self, sample: ConflictSample, form: str, text: str) -> str:
        """The verdict on one answer."""
        raise TypeError(f"{type(self).__name__} must define judge(sample, form, text)")

    def outcome(self, verdicts: Sequence[str], direction: str) -> str:
        """One sample's outcome for who steers toward ``direction``, from the verdicts on all its forms."""
        raise TypeError(f"{type(self).__name__} must define outcome(verdicts, direction)")


class Questions(Benchmark):
    """Questions that have a right answer."""

    def unscorable(self) -> str | None:
        """Why nothing can be scored here (hidden answers, no judge); None where scores are possible."""
        return None


class Harness(Benchmark):
    """Questions that an evaluation harness of its own asks, of the model as it stands in memory or on disk."""

    def harness(self, job: Any) -> list[dict[str, Any]]:
        """One result for each task of a ``factory.run.harness.Job``: name, metrics, intervals, n, protocol, records; a
        task's ``part`` ("all" where it is left out) and the metrics shown ``beside`` the main one."""
        raise TypeError(f"{type(self).__name__} must define harness(job)")


@runtime_checkable
class WithLessons(Protocol):
    """A benchmark that also draws what a model can be trained on."""

    def lesson(self, index: int, batch: int, total: int) -> Prompt:
        """Training prompt ``index`` of ``total``, ``batch`` of which are trained on together."""
        ...
