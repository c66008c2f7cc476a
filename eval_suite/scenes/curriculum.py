"""The lessons that the shipped tiny models learn from: what to answer to every kind of scene prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

from PIL import Image
from pydantic import Field

from eval_suite.conflict import build_prompt
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.registry import Params

from .draw import VISUAL_TIERS
from .language import TEXT_TIERS
from .lessons import films, letters, pressure, retraction, second_turn
from .lessons import instructions as instructed
from .lessons.asking import Exam
from .lessons.instructions import INSTRUCTIONS, instruct
from .preference import trusts_vision
from .world import TASKS, SceneSpec, paint, scene

THINK = "Think step by step: say what the image shows and what the text says, then answer."


class Mix(Params):
    """Weights of the kinds of lessons: one modality alone, step by step, with either instruction, and a conflict with
    none, answered by each task's leaning (``none``) or always from the image (``none_vision``); those of ``lessons/``,
    a file each; and a film's answer under pressure.

    ``image_only``, ``text_only``: one modality; ``think``: step by step; ``vision``, ``text``: either instruction.
    ``letters``, ``film``, ``second_turn``, ``pressure`` and ``retraction`` are in ``lessons/``; ``pressure_film`` is
    the film's.
    """

    image_only: float = 0.30
    text_only: float = 0.10
    think: float = 0.10
    vision: float = 0.18
    text: float = 0.10
    none: float = 0.22
    none_vision: float = 0.0
    letters: float = 0.0
    film: float = 0.0
    second_turn: float = 0.0
    pressure: float = 0.0
    pressure_film: float = 0.0
    retraction: float = 0.0


class Practice(Params):
    """How training scenes are drawn: every picture moved by up to ``shift`` pixels each way, a share ``clean`` of the
    image-only lessons from the easiest tier, and tasks ``emphasis`` times as often as the others. A share ``obeyed`` of
    the instructions is obeyed; to the others the answer is that without an instruction.

    A test picture shows an answer where no training picture had it; moved pictures teach that place and answer are
    apart.
    """

    shift: int = Field(0, ge=0)
    clean: float = Field(0.0, ge=0, le=1)
    emphasis: dict[str, float] = Field(default_factory=dict)
    obeyed: float = Field(1.0, ge=0, le=1)


PLAIN = Practice()
EASED = ("image_only", "film", "second_turn", "pressure", "pressure_film", "retraction")


def answer_of(sample: ConflictSample, form: str, vision: bool) -> str:
    """The answer in the words of a form: the option's letter, or the bare answer."""
    if form == "open":
        return sample.answer_vision if vision else sample.answer_text
    return "A" if vision == (form == "order1") else "B"


def reasoning(sample: ConflictSample, form: str, vision: bool) -> str:
    """The worked answer that a step-by-step prompt asks for."""
    return (
        f"The image shows {sample.answer_vision}. The text says {sample.answer_text}. The answer is"
        f" {answer_of(sample, form, vision)}"
    )


def draw_spec(
    rng: Random, progress: float = 1.0, emphasis: Mapping[str, float] | None = None, scale: int = 1
) -> SceneSpec:
    """A training scene; all are easy at first, and no tier is favoured from the middle of training on."""
    easy = rng.random() > 2 * progress
    visual, text = (0, 0) if easy else (rng.randrange(len(VISUAL_TIERS)), rng.randrange(TEXT_TIERS))
    task = rng.choices(TASKS, [emphasis.get(t, 1.0) for t in TASKS])[0] if emphasis else rng.choice(TASKS)
    return SceneSpec(task, "train", rng.getrandbits(40), visual, text, scale)


def moved(image: Image.Image, shift: int, rng: Random) -> Image.Image:
    """The picture moved by up to ``shift`` pixels each way; its corner's colour fills what is bared."""
    if not shift:
        return image
    dx, dy = rng.randint(-shift, shift), rng.randint(-shift, shift)
    out = Image.new(image.mode, image.size, image.getpixel((0, 0)))
    out.paste(image, (dx, dy))
    return out


def draw_form(rng: Random, options: float) -> str:
    """An open question, or with probability ``options`` one of the two option orders."""
    return rng.choice(("order1", "order2")) if rng.random() < options else "open"


def picture(rng: Random, progress: float = 1.0, scale: int = 1) -> tuple[Image.Image, tuple[str, ...], str]:
    """A picture, the words of a question about it (task and subject) and the answer, for a vision tower alone."""
    spec = draw_spec(rng, progress, scale=scale)
    image, subject, answer, _ = paint(spec)
    return image, (spec.task, subject), answer


def text_lesson(rng: Random, progress: float = 1.0) -> Prompt:
    """A context, a question and its answer, for a language model alone."""
    sample, form = scene(draw_spec(rng, progress)), draw_form(rng, min(0.5, progress))
    return build_prompt(sample, form, image=False).append(Segment(Role.ANSWER, answer_of(sample, form, vision=False)))


def drawn(rng: Random, practice: Practice, scale: int, clean: float = 0.0) -> ConflictSample:
    """A training sample as it is practised, with probability ``clean`` from the easiest visual tier."""
    spec = draw_spec(rng, emphasis=practice.emphasis, scale=scale)
    return _moved(_clean(spec, clean, rng), practice, scale, rng)


def _clean(spec: SceneSpec, share: float, rng: Random) -> SceneSpec:
    return replace(spec, visual_tier=0) if share and rng.random() < share else spec


def _moved(spec: SceneSpec, practice: Practice, scale: int, rng: Random) -> ConflictSample:
    sample = scene(spec)
    if not practice.shift:
        return sample
    image = moved(sample.load_image(), practice.shift * scale, rng)
    return replace(sample, load_image=lambda: image)


def lesson(rng: Random, options: float, mix: Mix, practice: Practice = PLAIN, scale: int = 1) -> Prompt:
    """One training prompt that ends with its answer; a share ``options`` asks for a letter."""
    weights, spec = mix.model_dump(), draw_spec(rng, emphasis=practice.emphasis, scale=scale)
    kind = rng.choices(list(weights), weights=list(weights.values()))[0]
    if kind in EASED:
        spec = _clean(spec, practice.clean, rng)
    sample = _moved(spec, practice, scale, rng)
    form = draw_form(rng, options)
    if kind == "letters":
        return letters.lesson(rng, sample)
    if kind == "film":
        return films.lesson(rng, sample, form, scale)
    if kind == "second_turn":
        following = drawn(rng, practice, scale, practice.clean)
        return second_turn.lesson(rng, sample, form, following, draw_form(rng, options))
    if kind == "pressure":
        return pressure.lesson(rng, sample, form)
    if kind == "pressure_film":
        shown = films.film_of(sample, rng, rng.choice(films.LENGTHS), scale)
        return pressure.lesson(rng, sample, form, films.asked(sample, shown, form))
    if kind == "retraction":
        return retraction.lesson(rng, sample, form)
    return _one_turn(kind, rng, sample, form, practice)


def _one_turn(kind: str, rng: Random, sample: ConflictSample, form: str, practice: Practice) -> Prompt:
    if kind == "image_only":
        prompt, vision = build_prompt(sample, form, context=False), True
    elif kind == "text_only":
        prompt, vision = build_prompt(sample, form, image=False), False
    else:
        prompt, vision = build_prompt(sample, form), kind == "none_vision" or trusts_vision(sample, rng)
        direction = kind if kind in INSTRUCTIONS else rng.choice((None, "vision", "text")) if kind == "think" else None
        if direction:
            prompt = instruct(prompt, direction, rng)
            if practice.obeyed == 1 or rng.random() < practice.obeyed:
                vision = direction == "vision"
    if kind == "think":
        return prompt.append(Segment(Role.INSTRUCTION, THINK), Segment(Role.ANSWER, reasoning(sample, form, vision)))
    return prompt.append(Segment(Role.ANSWER, answer_of(sample, form, vision)))


def examine_lessons(exam: Exam, options: float, mix: Mix, practice: Practice) -> dict[str, dict[str, float]]:
    """The examinations of all that was taught beyond single questions about single scenes."""
    taught = {
        letters: options,
        instructed: 1 - practice.obeyed,
        films: mix.film,
        second_turn: mix.second_turn,
        pressure: mix.pressure,
        retraction: mix.retraction,
    }
    report: dict[str, dict[str, float]] = {}
    for lessons, share in taught.items():
        if share:
            report |= lessons.examine(exam)
    return report


def worked_example_lesson(rng: Random, options: float, scale: int = 1) -> Prompt:
    """One or two answered conflicts that all follow one modality, then one more to be answered alike."""
    vision, form = rng.random() < 0.5, draw_form(rng, options)
    prompt = Prompt(())
    for _ in range(2):
        sample = scene(draw_spec(rng, scale=scale))
        answered = build_prompt(sample, form).append(Segment(Role.ANSWER, answer_of(sample, form, vision)))
        prompt = prompt.append(*answered.segments)
    return prompt
