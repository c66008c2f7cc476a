"""All that the playground does, without a page: prompts, answers, probabilities, the diagnostic's numbers, attention.

Everything that runs the model runs in one thread, so that visitors cannot steer each other (see ``worker``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from eval_suite.play.methods import Made, Methods
from eval_suite.play.worker import Recent, Worker
from factory.bench import letter_tokens
from factory.benchmark import Conflicts
from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, once_a_prompt
from factory.errors import UserError
from factory.instruments.likelihood import likelihoods
from factory.instruments.looks import Looks, looks_at_picture
from factory.model.prefix import decode_texts
from factory.model.view import ModelView
from factory.recipe.sections.model import ModelSpec
from factory.steer import LogitsMethod, PromptMethod, Steering, steer
from factory.steer.base import Direction
from factory.steer.calls import rewritten
from factory.steer.logits import contrasted
from factory.steer.sweep import Trunk, run_cell, run_trunk
from factory.steer.where import ROLES

POINTS = 13  # strengths of a curve
BLANK = Image.new("RGB", (8, 8))  # stands where there is no picture, until the prompt is without it
TRIED = 24  # samples among which the first to be shown is chosen
LISTED = 400  # samples that a page lists
SHOWN = ("image", "context", "text", "question", "options")  # roles of tokens that a visitor may leave out
SIDES: Mapping[str, tuple[Role, str]] = {"vision": (Role.IMAGE, "picture"), "text": (Role.CONTEXT, "context")}


@dataclass(frozen=True)
class Asked:
    """What a visitor asks and how it is steered. ``sample`` is the benchmark's that the rest was taken from, if any;
    ``vision`` and ``text`` are the answers that follow the picture and the context, empty where they are not told.
    """

    method: str
    question: str
    context: str = ""
    picture: Image.Image | None = field(default=None, repr=False)
    vision: str = ""
    text: str = ""
    direction: Direction = "vision"
    strength: float = 1.0
    hide_picture: bool = False
    hide_context: bool = False
    sample: str | None = None


@dataclass(frozen=True)
class Answers:
    """Both answers so far, and once both are whole (``done``) what the benchmark's rule says of them."""

    unsteered: str = ""
    steered: str = ""
    done: bool = False
    verdicts: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Curve:
    """Probabilities that the steered answer begins as either side's does, by strength; ``note`` says why there are
    none.
    """

    strengths: tuple[float, ...] = ()
    vision: tuple[float, ...] = ()
    text: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Posed:
    """What is run: the ``plain`` prompt, that of the method, the form it has and the method."""

    sample: ConflictSample
    plain: Prompt
    prompt: Prompt
    made: Made


class Session:
    """A model, a benchmark that lays prompts out, and methods; ``model`` and ``plugins`` are how code names them."""

    def __init__(
        self,
        view: ModelView,
        benchmark: Conflicts,
        methods: Methods,
        diagnostic: Diagnostic | None = None,
        *,
        model: ModelSpec,
        plugins: Sequence[str] = (),
        max_new_tokens: int = 16,
        most: float = 3.0,
    ) -> None:
        self.view, self.benchmark, self.methods, self.diagnostic = view, benchmark, methods, diagnostic
        self.model, self.plugins, self.max_new_tokens, self.most = model, tuple(plugins), max_new_tokens, most
        self.layer = view.depth // 2 if view.layer is None else view.layer
        self.worker = Worker()
        self._trunks, self._plain, self._found = Recent[Trunk](4), Recent[str](64), Recent[Any](64)

    @cached_property
    def samples(self) -> dict[str, ConflictSample]:
        """Test samples of the benchmark, by id."""
        return {sample.id: sample for sample in list(self.benchmark.samples("test"))[:LISTED]}

    @cached_property
    def among(self) -> Tensor | None:
        """The tokens that an answer is one of, where the benchmark forces a choice."""
        return letter_tokens(self.view, self.benchmark)

    @property
    def title(self) -> str:
        """What is played with, in one line."""
        name = self.model.zoo or self.model.path or self.model.hub or "a composed model"
        return f"{name} · samples of {self.benchmark.name} · {len(self.methods.offers)} methods"

    @property
    def form(self) -> str:
        """The form in which prompts are asked."""
        return self.benchmark.forms[0]

    def asked(self, sample: str, method: str | None = None, **more: Any) -> Asked:
        """A benchmark's sample as it is. Raises ``UserError`` for one that is not there, or whose picture cannot be
        read.
        """
        if sample not in self.samples:
            raise UserError(f"{self.benchmark.name} has no test sample {sample!r} here")
        s, offer = self.samples[sample], self.methods.offer(method) if method else self.methods.first
        with _readable():
            picture = s.load_image()
        return Asked(offer.label, s.question, s.context, picture, s.answer_vision, s.answer_text, sample=sample, **more)

    def answers(self, asked: Asked) -> Iterator[Answers]:
        """Both answers as they are written, token by token, then whole. Raises ``UserError`` for what cannot be."""

        def job(tell: Callable[[Answers], None]) -> None:
            posed = self._posed(asked)
            plain = self._plain.get(posed.plain.digest, lambda: self._answer_plain(posed.plain, tell))
            steered = self._answer_steered(posed, asked, lambda text: tell(Answers(plain, text)))
            judge = lambda text: self.benchmark.judge(posed.sample, self.form, text) if _told(asked) else ""
            tell(Answers(plain, steered, True, (judge(plain), judge(steered))))

        return self.worker.stream(job)

    def curve(self, asked: Asked) -> Curve:
        """The probability of either side's answer over strengths from 0 to ``most``, or to a larger one that is
        asked for."""
        return self.worker.do(lambda: self._curve(self._posed(asked), asked))

    def ratios(self, asked: Asked) -> dict[str, float]:
        """What the diagnostic says once of the unsteered prompt, by metric, as R_V and R_T; nothing without it."""

        def job() -> dict[str, float]:
            prompt = self._posed(asked).plain
            return self._found.get(("ratios", prompt.digest), lambda: self._measured(prompt))

        return self.worker.do(job)

    def looks(self, asked: Asked) -> tuple[Looks, Looks] | None:
        """Where the last token looks on the picture, unsteered and steered; None where the prompt shows none. Decoding
        methods leave the first token's attention as it is, or change it by themselves: there both are unsteered.
        """

        def job() -> tuple[Looks, Looks] | None:
            posed = self._posed(asked)
            if not posed.plain.images:
                return None
            plain = self._found.get(("looks", posed.plain.digest), lambda: looks_at_picture(self.view, posed.plain))
            if not posed.prompt.images or isinstance(posed.made, LogitsMethod):
                return plain, plain
            if isinstance(posed.made, PromptMethod):
                return plain, looks_at_picture(self.view, posed.prompt)
            with steer(self.view, replace(posed.made, strength=asked.strength)):
                return plain, looks_at_picture(self.view, posed.prompt)

        return self.worker.do(job)

    def posed(self, asked: Asked) -> Posed:
        """What is run for what is asked. Raises ``UserError`` for what cannot be."""
        return self.worker.do(lambda: self._posed(asked))

    @cached_property
    def turned(self) -> str | None:
        """The first test sample that the first method turns, of some; else the first. It is what a page shows first, so
        that nobody waits for the method's fit.
        """
        first, direction = self.methods.first, self.methods.first.directions[0]
        ids = list(self.samples)[:: max(1, len(self.samples) // TRIED)][:TRIED]
        for sample in ids:
            with suppress(UserError):  # an unreadable picture, say; the page tells of it where it is asked for
                asked = self.asked(sample, first.label, direction=direction, strength=first.strength[direction])
                *_, found = self.answers(asked)
                if found.verdicts[1] == direction != found.verdicts[0]:
                    return sample
        return next(iter(self.samples), None)

    def close(self) -> None:
        """End the thread that everything runs in."""
        self.worker.close()

    def _posed(self, asked: Asked) -> Posed:
        if not asked.question.strip():
            raise UserError("the question is empty: write what the model should be asked")
        if not (isinstance(asked.strength, int | float) and isfinite(asked.strength)):
            raise UserError(f"strength {asked.strength!r} is not a finite number")
        if asked.strength < 0:
            raise UserError(f"strength {asked.strength:g} lies below 0: steer toward the other side instead")
        own = ConflictSample("own", "", "", "", "", "", lambda: BLANK)
        sample = replace(
            self.samples.get(asked.sample or "", own),
            question=asked.question.strip(),
            context=asked.context.strip(),
            answer_vision=asked.vision.strip(),
            answer_text=asked.text.strip(),
            load_image=lambda: asked.picture or BLANK,
        )
        hidden = [Role.IMAGE] if asked.picture is None or asked.hide_picture else []
        hidden += [Role.CONTEXT] if not asked.context.strip() or asked.hide_context else []
        plain = self.benchmark.prompt(sample, self.form).without(*hidden)
        if self.form != "open" and not _told(asked):
            raise UserError(f"{self.benchmark.name} asks with options: give both answers, the picture's and the text's")
        made = self.methods.get(asked.method, asked.direction)
        _refuse(asked, plain, made)
        return Posed(sample, plain, self._rewritten(plain, made, asked), made)

    def _rewritten(self, plain: Prompt, made: Made, asked: Asked) -> Prompt:
        if isinstance(made, PromptMethod):
            return rewritten(self.view, made, [plain], asked.direction)[0]
        return made.steerer.rewrite(plain, asked.direction) if isinstance(made, Steering) else plain

    def _trunk(self, prompt: Prompt, layer: int) -> Trunk:
        make = lambda: run_trunk(self.view, self.view.encode([prompt]), layer)
        return self._trunks.get((prompt.digest, layer), make)

    def _layer(self, made: Made) -> int:
        return made.layer if isinstance(made, Steering) and made.where.layer is not None else self.layer

    def _answer_plain(self, prompt: Prompt, tell: Callable[[Answers], None]) -> str:
        heard = lambda tokens: tell(Answers(self._text(tokens)))
        trunk = self._trunk(prompt, self.layer)
        return self._text(run_cell(self.view, trunk, None, self.max_new_tokens, self.among, heard))

    def _answer_steered(self, posed: Posed, asked: Asked, told: Callable[[str], None]) -> str:
        made, heard = posed.made, lambda tokens: told(self._text(tokens))
        if isinstance(made, LogitsMethod):
            strengths, most = [asked.strength], self.max_new_tokens
            told_all = contrasted(
                self.view, made, [posed.prompt], asked.direction, strengths, most, self.among, heard=heard
            )
            return told_all[0][0]
        most = (isinstance(made, PromptMethod) and made.max_new_tokens) or self.max_new_tokens
        steering = replace(made, strength=asked.strength) if isinstance(made, Steering) else None
        trunk = self._trunk(posed.prompt, self._layer(made))
        return self._text(run_cell(self.view, trunk, steering, most, self.among, heard))

    def _text(self, tokens: Tensor) -> str:
        return decode_texts(self.view, tokens[:1])[0]

    def _curve(self, posed: Posed, asked: Asked) -> Curve:
        if not _told(asked):
            return Curve(note="tell both answers, the picture's and the text's, and their probabilities are drawn here")
        if isinstance(posed.made, LogitsMethod):
            return Curve(note=f"'{asked.method}' chooses among tokens and changes no probability of the model's")
        most = max(self.most, asked.strength)
        strengths = tuple(most * i / (POINTS - 1) for i in range(POINTS))
        steering = posed.made if isinstance(posed.made, Steering) else None
        sides = [self.benchmark.answer(posed.sample, self.form, side) for side in ("vision", "text")]
        prompts = [posed.prompt.append(Segment(Role.ANSWER, side)) for side in sides]

        def make() -> Curve:
            found = likelihoods(self.view, prompts, self._layer(posed.made), steering, strengths)
            vision, text = found.T.tolist()
            return Curve(strengths, tuple(vision), tuple(text))

        key = (asked.method, asked.direction, most, *(prompt.digest for prompt in prompts))
        return self._found.get(key, make)

    def _measured(self, prompt: Prompt) -> dict[str, float]:
        if self.diagnostic is None:
            return {}
        rows = self.diagnostic.measure(self.view, self.view.encode([prompt]), ["shown"])
        return {metric: float(values[0]) for metric, values in once_a_prompt(rows, ["shown"]).items()}


def read_picture(path: str | Path | None) -> Image.Image | None:
    """A visitor's picture. Raises ``UserError`` where it cannot be read."""
    if path is None:
        return None
    with _readable():
        return pictures.decode(Path(path).read_bytes(), Path(path).name)


@contextmanager
def _readable() -> Iterator[None]:
    """Turns what an unreadable picture raises into a line for people."""
    try:
        yield
    except OSError as error:
        raise UserError(f"the picture cannot be read: {error}") from error


def _told(asked: Asked) -> bool:
    return bool(asked.vision.strip() and asked.text.strip())


def _refuse(asked: Asked, prompt: Prompt, made: Made) -> None:
    """Raises ``UserError`` where a method would do nothing, for want of what it acts on."""
    there = {segment.role for segment in prompt.segments}
    if isinstance(made, Steering) and made.where.role in SHOWN and not there & set(ROLES[made.where.role]):
        raise UserError(
            f"'{asked.method}' steers the tokens of the {made.where.role}, and this prompt has none: show it, or choose"
            " another method"
        )
    needed, name = SIDES[asked.direction]
    if not isinstance(made, Steering) and needed not in there:
        raise UserError(
            f"'{asked.method}' toward {asked.direction} works on the {name}, and this prompt has none: show it, or"
            " choose another method"
        )
