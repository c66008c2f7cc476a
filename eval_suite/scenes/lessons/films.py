"""Films: several pictures in a row, of which one alone carries the evidence.

A film is asked what its picture shows, or which picture shows it. All other pictures hold shapes that the question does
not ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image

from eval_suite.conflict import DIRECT, answer_of, question_segments
from eval_suite.scenes.draw import COLORS, SHAPES, SIZE, Canvas
from eval_suite.scenes.language import phrasing
from eval_suite.scenes.lessons.asking import Exam, mean, said
from eval_suite.scorers.conflict import judge
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample

FRAMES = 8
LENGTHS = (2, 4, FRAMES)
ORDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
WHICH = (
    "Which picture shows {s}?",
    "In which picture is {s}?",
    "{s} is in which picture?",
    "The number of the picture that shows {s}?",
    "Which is the picture of {s}?",
    "Which is the picture that shows {s}?",
)
ASKS_WHICH = 0.3


@dataclass(frozen=True)
class Film:
    """Pictures in their order; the one at ``at`` carries the evidence."""

    pictures: tuple[Image.Image, ...]
    at: int

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(Segment(Role.IMAGE, image=picture) for picture in self.pictures)


def filler(rng: Random, subject: str, scale: int = 1) -> Image.Image:
    """A picture of one or two shapes, none of which is ``subject`` (by shape or by colour)."""
    canvas = Canvas(rng, scale=scale)
    shapes = [s for s in SHAPES if s not in subject]
    colors = [c for c in COLORS if c not in subject]
    for _ in range(rng.randint(1, 2)):
        r = rng.uniform(4.0, 8.0)
        x, y = (rng.uniform(r + 1, SIZE - r - 1) for _ in range(2))
        canvas.shape(rng.choice(shapes), rng.choice(colors), x, y, r)
    return canvas.finish(0.0)


def film_of(sample: ConflictSample, rng: Random, frames: int = FRAMES, scale: int = 1) -> Film:
    """A film of ``frames`` pictures, the sample's own among them at a drawn place."""
    at, subject = rng.randrange(frames), str(sample.tags["subject"])
    return Film(tuple(sample.load_image() if i == at else filler(rng, subject, scale) for i in range(frames)), at)


def asked(sample: ConflictSample, film: Film, form: str) -> Prompt:
    """What does the film show?"""
    return Prompt((*film.segments, *question_segments(sample, form)), task=sample.task)


def asked_which(sample: ConflictSample, film: Film, split: str, rng: Random) -> Prompt:
    """Which picture shows what is asked for? (A number word.)"""
    question = phrasing(WHICH, split, rng).format(s=sample.tags["subject"])
    asked = Segment(Role.QUESTION, question), Segment(Role.OPTIONS, DIRECT)
    return Prompt((*film.segments, *asked), task=sample.task)


def lesson(rng: Random, sample: ConflictSample, form: str, scale: int = 1) -> Prompt:
    """A film of two, four or eight pictures, with the answer."""
    film = film_of(sample, rng, rng.choice(LENGTHS), scale)
    if rng.random() < ASKS_WHICH:
        return asked_which(sample, film, "train", rng).append(said(ORDINALS[film.at]))
    return asked(sample, film, form).append(said(answer_of(sample, form, "vision")))


def examine(exam: Exam) -> dict[str, dict[str, float]]:
    """Shares of films of eight clean pictures that are read right, and of those whose picture is found."""

    def filmed(samples: list[ConflictSample]) -> list[tuple[ConflictSample, Film]]:
        return [(s, film_of(s, exam.words(s), scale=exam.scale)) for s in samples]

    def read(samples: list[ConflictSample]) -> float:
        texts = exam.answer([asked(s, film, "open") for s, film in filmed(samples)])
        return mean(
            judge("open", t, s.answer_vision, s.answer_text) == "vision" for s, t in zip(samples, texts, strict=True)
        )

    def found(samples: list[ConflictSample]) -> float:
        films = filmed(samples)
        texts = exam.answer([asked_which(s, film, exam.split, exam.words(s)) for s, film in films])
        return mean(t.strip().lower() == ORDINALS[film.at] for (_, film), t in zip(films, texts, strict=True))

    return {"film": exam.by_task(read), "film_which": exam.by_task(found)}
