"""Conflict benchmarks (MC², arXiv 2505.20977): prompt layout, the two scorings, and the common base class.

Of two texts that contradict each other (ours) the first stands where the image does, and each is headed by its name.

Layout and instruction strings are those of the authors' script (SPEC.md 3.2); scoring follows SPEC.md 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from PIL import Image
from pydantic import AfterValidator, StringConstraints

from eval_suite.conflict_questions import ConflictQuestions
from eval_suite.results import result_rows
from eval_suite.scorers.conflict import RULE, agree, called, outcome, read
from eval_suite.sheet import SHOWN, Cell, write_sheet
from factory.benchmark import Conflicts, Questions
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.registry import Params
from factory.run.samples import SPLITS, thin

RESERVED = ("vision", "base", "both", "all", "none", "known", "follow", "compete", "flags", "other", "error", "unknown")
"""Words that results have another meaning for."""


def _free(names: tuple[str, str]) -> tuple[str, str]:
    if names[0] == names[1]:
        raise ValueError(f"two texts need two names, and both are '{names[0]}'")
    if taken := [name for name in names if name in RESERVED]:
        raise ValueError(f"no text can be called '{taken[0]}', which has a meaning in results")
    return names


SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,23}$")]
SourceNames = Annotated[tuple[SourceName, SourceName], AfterValidator(_free)]
"""What the two texts of a conflict are called."""
Order = Literal["named", "exchanged"]
"""Which of two texts stands first in a prompt: the one that is named first, or the other."""
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
SHORT = {"vision": "image"}  # what a sheet calls a source


BLANK: Mapping[str, Mapping[str, Any]] = {"blank picture": {"shown": "blank"}}
"""The control that every benchmark with pictures can give."""


class ShownParams(Params):
    """``shown``: the picture, or the control that shows a blank one of its size."""

    shown: Literal["picture", "blank"] = "picture"

    @property
    def control(self) -> str:
        """What the control adds to a protocol."""
        return "/blank" if self.shown == "blank" else ""

    @property
    def followed(self) -> Literal["vision", "text"]:
        """The side that answers should follow: what the picture shows, unless none is shown."""
        return "text" if self.shown == "blank" else "vision"

    def load(self, picture: Callable[[], Image.Image]) -> Callable[[], Image.Image]:
        """What is shown in place of a picture: itself, or a white one of its size."""
        return picture if self.shown == "picture" else partial(blank, picture)


def blank(picture: Callable[[], Image.Image]) -> Image.Image:
    """A white picture of the size of another."""
    return Image.new("RGB", picture().size, "white")


def options(sample: ConflictSample, order: int) -> tuple[str, str]:
    """(A, B): the first source's answer comes first in order 0 and second in order 1."""
    pair = (sample.answer_vision, sample.answer_text)
    return pair if order == 0 else pair[::-1]


def question_segments(sample: ConflictSample, form: str) -> tuple[Segment, Segment]:
    if form == "open":
        return Segment(Role.QUESTION, sample.question), Segment(Role.OPTIONS, DIRECT)
    a, b = options(sample, 0 if form == "order1" else 1)
    return Segment(Role.QUESTION, sample.question), Segment(Role.OPTIONS, f"A. {a}\nB. {b}\n{CHOOSE}")


def build_prompt(
    sample: ConflictSample, form: str, image: bool = True, context: bool = True, order: Order = "named"
) -> Prompt:
    """The MC² user turn: image, "Text context: ...", question, options (``single`` setting, no instruction).

    ``image`` and ``context`` switch the unimodal settings ``base_text`` and ``base_image`` of the authors' script.
    ``order`` is that of two texts.
    """
    parts: list[Segment] = []
    if image and sample.sources.pictured:
        parts.append(Segment(Role.IMAGE, image=sample.load_image()))
    if context:
        parts += context_segments(sample)[:: -1 if order == "exchanged" else 1]
    return Prompt((*parts, *question_segments(sample, form)), sample.sources, sample.task)


def context_segments(sample: ConflictSample) -> list[Segment]:
    """What the texts of a sample say, each headed by its name: "Memo: ..."; of an image and a text "Text context:
    ...".
    """
    if sample.sources.pictured:
        return [Segment(Role.CONTEXT, f"Text context: {sample.context}")]
    return [Segment(sample.sources[name].role, f"{heading(name)}: {text}") for name, text in sample.contexts.items()]


def heading(source: str) -> str:
    """What a source is headed by in a prompt: "Memo" of memo, "Weather report" of weather_report."""
    return source.replace("_", " ").capitalize()


def answer_of(sample: ConflictSample, form: str, direction: str) -> str:
    """The answer that follows ``direction`` in the words of a form: the answer itself, or its option's letter."""
    answer = sample.answers[direction]
    return answer if form == "open" else "AB"[options(sample, 0 if form == "order1" else 1).index(answer)]


class ConflictBenchmark(Conflicts):
    """Base of benchmarks whose samples set two sources against each other, an image against a text unless they say.
    Subclasses give ``samples``.
    """

    scorer: ClassVar[str] = RULE
    name: ClassVar[str]
    scoring: Scoring

    @property
    def order(self) -> Order:
        """Which of two texts stands first."""
        return getattr(self.params, "order", "named")

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
        return f"{self.name}/{self.scoring}{'/exchanged' if self.order == 'exchanged' else ''}"

    def pictures(self, folder: Path) -> list[tuple[str, Path]]:
        """A sheet of some samples: split and id, context, question, and both answers under each picture."""
        drawn = [(split, sample) for split in SPLITS for sample in self.samples(split)]
        cells = [cell_of(f"{split} {s.id}", s) for split, s in thin(drawn, SHOWN)]
        title = f"{self.name}: {len(cells)} of {len(drawn)} samples"
        return [(title, write_sheet(folder / f"{self.name}.png", cells))] if cells else []

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        return build_prompt(sample, form, order=self.order)

    def example(self, sample: ConflictSample, form: str, direction: str) -> Prompt:
        """A worked example: the prompt of a form with the answer that follows ``direction``."""
        return self.prompt(sample, form).append(Segment(Role.ANSWER, self.answer(sample, form, direction)))

    def answer(self, sample: ConflictSample, form: str, direction: str) -> str:
        """The canonical answer that follows ``direction``, as a form of the prompt asks for it."""
        return answer_of(sample, form, direction)

    def judge(self, sample: ConflictSample, form: str, text: str) -> str:
        """The verdict on one answer's text: the name of the source that it follows, flags, other, unknown (other, and
        names neither answer) or error.
        """
        return called(read(form, text, sample.answer_vision, sample.answer_text), sample.sources.names)

    def outcome(self, verdicts: Sequence[str], direction: str) -> str:
        """One sample's outcome from the verdicts on all its forms: follow, compete, flags, other or error."""
        return outcome(agree(verdicts), direction)

    def as_questions(self) -> Questions:
        """Its test samples as questions, for ``benchmarks:``: whom answers follow, with no direction steered to."""
        followed = getattr(self.params, "followed", "")
        return ConflictQuestions(self, followed if followed in self.sources.names else "")

    def rows(self, predictions: Sequence[dict], **context: Any) -> list[dict]:
        """Rows of results.json from per-sample predictions."""
        about = {"benchmark": self.name, "protocol": self.protocol, "scorer": self.scorer}
        return result_rows(predictions, self.forms, self.sources.names, **about, **context)


def cell_of(name: str, sample: ConflictSample) -> Cell:
    """A sample on a sheet: its picture where it has one, what its texts say, what is asked, and both answers."""
    answers = tuple(f"{SHORT.get(source, source)}: {answer}" for source, answer in sample.answers.items())
    if sample.sources.pictured:
        return Cell(name, sample.load_image, f"{sample.context} {sample.question}", answers)
    words = [segment.text for segment in context_segments(sample)]
    return Cell(name, None, "\n".join((*words, sample.question)), answers)
