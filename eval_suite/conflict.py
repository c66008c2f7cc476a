"""Conflict benchmarks (MC², arXiv 2505.20977): prompt layout, the two scorings, and the common base class.

Layout and instruction strings are those of the authors' script (SPEC.md 3.2); scoring follows SPEC.md 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from eval_suite.conflict_questions import ConflictQuestions
from eval_suite.results import result_rows
from eval_suite.scorers.conflict import RULE, agree, outcome, read
from eval_suite.sheet import SHOWN, Cell, write_sheet
from factory.benchmark import Conflicts, Questions
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.run.samples import SPLITS, thin

Scoring = Literal["both_orders", "order1", "loglik_forced", "open_ended"]
TASKS = (
    "activity_recognition",
    "attribute",
    "color",
    "counting",
    "object_recognition",
    "positional_reasoning",
    "sentiment_understanding",
    "sport_recognition",
)
FORMS: dict[str, tuple[str, ...]] = {
    "both_orders": ("order1", "order2"),
    "order1": ("order1",),
    "loglik_forced": ("order1",),
    "open_ended": ("open",),
}
CHOOSE = "Answer the question by selecting the correct answer A or B."
DIRECT = "Please directly answer the question."


def options(sample: ConflictSample, order: int) -> tuple[str, str]:
    """(A, B): the vision answer comes first in order 0 and second in order 1."""
    pair = (sample.answer_vision, sample.answer_text)
    return pair if order == 0 else pair[::-1]


def question_segments(sample: ConflictSample, form: str) -> tuple[Segment, Segment]:
    if form == "open":
        return Segment(Role.QUESTION, sample.question), Segment(Role.OPTIONS, DIRECT)
    a, b = options(sample, 0 if form == "order1" else 1)
    return Segment(Role.QUESTION, sample.question), Segment(Role.OPTIONS, f"A. {a}\nB. {b}\n{CHOOSE}")


def build_prompt(sample: ConflictSample, form: str, image: bool = True, context: bool = True) -> Prompt:
    """The MC² user turn: image, "Text context: ...", question, options (``single`` setting, no instruction).

    ``image`` and ``context`` switch the unimodal settings ``base_text`` and ``base_image`` of the authors' script.
    """
    parts: list[Segment] = []
    if image:
        parts.append(Segment(Role.IMAGE, image=sample.load_image()))
    if context:
        parts.append(Segment(Role.CONTEXT, f"Text context: {sample.context}"))
    return Prompt((*parts, *question_segments(sample, form)))


def answer_of(sample: ConflictSample, form: str, direction: str) -> str:
    """The answer that follows ``direction`` in the words of a form: the answer itself, or its option's letter."""
    answer = sample.answer_vision if direction == "vision" else sample.answer_text
    return answer if form == "open" else "AB"[options(sample, 0 if form == "order1" else 1).index(answer)]


class ConflictBenchmark(Conflicts):
    """Base of benchmarks whose samples set an image against a text. Subclasses give ``samples``."""

    scorer: ClassVar[str] = RULE
    name: ClassVar[str]
    scoring: Scoring

    @property
    def forms(self) -> tuple[str, ...]:
        """Names of the prompts that each sample is asked with."""
        return FORMS[self.scoring]

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of which the likelier is the answer (``loglik_forced``: no answer is unparsable, none is an
        error); else none.
        """
        return ("A", "B") if self.scoring == "loglik_forced" else ()

    @property
    def protocol(self) -> str:
        return f"{self.name}/{self.scoring}"

    def pictures(self, folder: Path) -> list[tuple[str, Path]]:
        """A sheet of some samples: split and id, context, question, and both answers under each picture."""
        drawn = [(split, sample) for split in SPLITS for sample in self.samples(split)]
        cells = [
            Cell(
                f"{split} {s.id}",
                s.load_image,
                f"{s.context} {s.question}",
                (f"image: {s.answer_vision}", f"text: {s.answer_text}"),
            )
            for split, s in thin(drawn, SHOWN)
        ]
        title = f"{self.name}: {len(cells)} of {len(drawn)} samples"
        return [(title, write_sheet(folder / f"{self.name}.png", cells))] if cells else []

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        return build_prompt(sample, form)

    def example(self, sample: ConflictSample, form: str, direction: str) -> Prompt:
        """A worked example: the prompt of a form with the answer that follows ``direction``."""
        return self.prompt(sample, form).append(Segment(Role.ANSWER, self.answer(sample, form, direction)))

    def answer(self, sample: ConflictSample, form: str, direction: str) -> str:
        """The canonical answer that follows ``direction``, as a form of the prompt asks for it."""
        return answer_of(sample, form, direction)

    def judge(self, sample: ConflictSample, form: str, text: str) -> str:
        """The verdict on one answer's text: vision, text, flags, other, unknown (other, and names neither answer) or
        error.
        """
        return read(form, text, sample.answer_vision, sample.answer_text)

    def outcome(self, verdicts: Sequence[str], direction: str) -> str:
        """One sample's outcome from the verdicts on all its forms: follow, compete, flags, other or error."""
        return outcome(agree(verdicts), direction)

    def as_questions(self) -> Questions:
        """Its test samples as questions, for ``benchmarks:``: whom answers follow, with no direction steered to."""
        return ConflictQuestions(self)

    def rows(self, predictions: Sequence[dict], **context: Any) -> list[dict]:
        """Rows of results.json from per-sample predictions."""
        about = {"benchmark": self.name, "protocol": self.protocol, "scorer": self.scorer}
        return result_rows(predictions, self.forms, **about, **context)
