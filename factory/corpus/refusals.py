"""What a model cannot take of training rows and of pictures, told without its weights: by its tokenizer, its chat
template and its image processor themselves, asked with stand-ins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property

from PIL import Image
from torch import Tensor

from factory import code, files
from factory.corpus.conversation import Conversation, Unusable
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError, quoted
from factory.model.encode import Encoded, images_first, render
from factory.model.view import ModelView

Size = tuple[int, int]
SMALL, LONG = 32, 20  # pictures with a shorter side than that, or thinner than 1 to that, are asked about
THINNEST = 500  # image processors that scale the shorter side would make more than a billion pixels of a thinner one
REFUSED = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)  # what image processors raise
TRIED, LARGE = ((336, 336), (60, 40), (640, 480), (1280, 240), (240, 1280)), ((1344, 1344), (1792, 1344))
ASKED = 300_000_000  # pixels, for which an image processor takes some seconds
SPELT, OF_TEMPLATE = "special token in a text", "refused by the chat template"
OF_IMAGE, TOO_LONG = "refused by the image processor", "too long"
AROUND = 200  # tokens; no template writes more around the texts of one question


class Shapes:
    """Sizes of pictures that the model's image processor refuses: it is shown a blank one of each odd size, once."""

    def __init__(self, view: ModelView) -> None:
        self.view = view
        self._told: dict[Size, str | None] = {}

    def refusal(self, size: Size) -> str | None:
        """Why a picture of ``size`` cannot be shown to the model; None where it can."""
        if min(size) >= SMALL and max(size) <= LONG * min(size):
            return None
        if size not in self._told:
            self._told[size] = self._asked(size)
        return self._told[size]

    def _asked(self, size: Size) -> str | None:
        named = f"its image of {size[0]} x {size[1]} pixels"
        if max(size) > THINNEST * min(size):
            return f"{named} is thinner than 1:{THINNEST}"
        try:
            self.view.images_of([_shown(Image.new("RGB", size))])
        except REFUSED as error:
            return f"{named} is refused by the model's image processor: {quoted(' '.join(str(error).split()), 100)}"
        return None


class Lengths:
    """What stands for a picture in a prompt, by its size: the same for all, or what the image processor says."""

    def __init__(self, view: ModelView) -> None:
        self.view, self.left = view, ASKED
        self._told: dict[Size, str | None] = {}

    @cached_property
    def tried(self) -> dict[Size, str]:
        """What stands for pictures of some sizes; large ones are left out where all others are alike."""
        texts = {size: self._asked(size) for size in TRIED}
        if len(set(texts.values())) > 1 or None in texts.values():
            texts |= {size: self._asked(size) for size in LARGE}
        return {size: text for size, text in texts.items() if text is not None}

    @cached_property
    def _tokens(self) -> dict[int, int]:
        """Tokens by pixels."""
        count = lambda text: len(self.view.tokenizer(text, add_special_tokens=False)["input_ids"])
        return {w * h: count(text) for (w, h), text in self.tried.items()}

    def at_most(self, size: Size) -> float:
        """Tokens of a picture, roughly and rather too many."""
        area, largest = size[0] * size[1], max(self._tokens, default=1)
        tokens = max((n for other, n in self._tokens.items() if other >= min(area, largest)), default=math.inf)
        return tokens * (1.0 if self.alike else max(1.0, area / largest))

    @cached_property
    def alike(self) -> bool:
        """Whether pictures of all sizes take the same."""
        return len(self.tried) == len(TRIED) and len(set(self.tried.values())) == 1

    def text(self, size: Size) -> str | None:
        """Image tokens and what is written between them; None where too much was asked about already."""
        if self.alike:
            return self.tried[TRIED[0]]
        if size not in self._told and self.left > 0:
            self.left -= size[0] * size[1]
            self._told[size] = self._asked(size)
        return self._told.get(size)

    def _asked(self, size: Size) -> str | None:
        try:
            _, ((written,),) = self.view.images_of([_shown(Image.new("RGB", size))])
        except REFUSED:
            return None
        return written


class Refusals:
    """The check of a data file's rows (``factory.corpus.index.Check``) for one model and one limit of tokens.

    Rows are measured as they are encoded, their pictures' tokens and the end token included; where pictures take as
    many tokens as their size says, and those of different sizes have more than ``ASKED`` pixels, a row that is too long
    by its pictures may be found only when it is read.
    """

    def __init__(self, view: ModelView, max_tokens: int | None) -> None:
        self.view, self.writing, self.positions = view, view.writing, view.positions
        self.limit = room(view, max_tokens)
        self.images_first = images_first(self.writing)
        self.shapes, self.lengths = Shapes(view), Lengths(view)
        special = sorted({token for token in self.writing.special if token}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)))
        self._layouts: dict[tuple[Role, ...], str | None] = {}
        self.identity = files.digest(
            [
                code.of(Refusals),
                special,
                self.writing.template,
                self.writing.placeholder,
                type(view.tokenizer).__name__,
                sorted(view.tokenizer.get_added_vocab().items()),
                len(view.tokenizer),
                view.picture_settings,
                self.limit,
                self.positions,
            ]
        )

    def __call__(self, conversation: Conversation, sizes: Sequence[Size]) -> None:
        """Raises ``Unusable`` for what the model cannot take; ``sizes`` are width and height of each picture."""
        for role, text in conversation.parts:
            if role != Role.IMAGE and (spelt := self._special.search(text)):
                raise Unusable(
                    f"a {role.name.lower()} text spells the model's special token '{spelt[0]}': {quoted(text)}",
                    SPELT,
                )
        if why := self._layout(tuple(role for role, _ in conversation.parts)):
            raise Unusable(why, OF_TEMPLATE)
        for size in sizes:
            if why := self.shapes.refusal(size):
                raise Unusable(why, OF_IMAGE)
        self._check_length(conversation, sizes)

    def _layout(self, roles: tuple[Role, ...]) -> str | None:
        """Why the chat template refuses turns of these roles, whatever they say."""
        if roles not in self._layouts:
            try:
                prompt = self._prompt([(role, "a") for role in roles], [(1, 1)] * len(roles))
                render(self.writing, prompt, [self.writing.image_token] * len(prompt.images), ended=True)
                self._layouts[roles] = None
            except UserError as error:
                self._layouts[roles] = str(error)
        return self._layouts[roles]

    def _check_length(self, conversation: Conversation, sizes: Sequence[Size]) -> None:
        """What a row must keep has room: all up to a token of its first answer, or where nothing is cut, all."""
        most, parts = self.limit or self.positions, conversation.parts
        if most is None:
            return
        if self.limit:
            parts = parts[: next(i for i, (role, _) in enumerate(parts) if role == Role.ANSWER) + 1]
        kept = [text for role, text in (parts[:-1] if self.limit else parts) if role != Role.IMAGE]
        sizes = sizes[: len(parts) - len(kept) - bool(self.limit)]
        left = most - AROUND * sum(role == Role.ANSWER for role, _ in parts)
        if sum(len(text.encode()) for text in kept) + sum(map(self.lengths.at_most, sizes)) < left:
            return
        words = self.view.tokenizer(kept, add_special_tokens=False)["input_ids"] if kept else []
        if sum(map(len, words)) + 2 * len(words) + sum(map(self.lengths.at_most, sizes)) < left:
            return
        told = [self.lengths.text(size) for size in sizes]
        prompt = self._prompt(parts, [(1, 1)] * len(sizes))
        written = [self.writing.image_token if text is None else text for text in told]
        (encoded,) = self.view.tokens([prompt], [written], ended=True)
        if not self.limit:
            check_positions(self.view, [encoded], lambda: self.view.images_of([self._prompt(parts, sizes)])[0])
        elif (asked := encoded.answers.index(True)) >= self.limit:
            least = "at least " if None in told else ""
            raise Unusable(f"takes {least}{no_room(asked, self.limit, self.positions)}", TOO_LONG)

    def _prompt(self, parts: Sequence[tuple[Role, str]], sizes: Sequence[Size]) -> Prompt:
        """Parts of a row, its images blank ones of their sizes."""
        blanks = iter(sizes)
        show = lambda role, text: (
            Segment(role, image=Image.new("RGB", next(blanks))) if role == Role.IMAGE else Segment(role, text)
        )
        prompt = Prompt(tuple(show(role, text) for role, text in parts))
        return prompt.images_first() if self.images_first else prompt


def room(view: ModelView, max_tokens: int | None) -> int | None:
    """The tokens that a row is cut to: ``max_tokens``, as far as the model has positions; None where nothing is cut."""
    return None if max_tokens is None else min(max_tokens, view.positions or max_tokens)


def no_room(asked: int, limit: int, positions: int | None) -> str:
    """That ``limit``, which ``room`` gave, leaves no token for an answer that ``asked`` tokens come before."""
    of = f"the model's {limit} positions leave" if limit == positions else f"tune.data.max_tokens={limit} leaves"
    return f"{asked} tokens before its first answer; {of} none for the answer"


def check_positions(view: ModelView, encoded: Sequence[Encoded], images: Callable[[], dict[str, Tensor]]) -> None:
    """Raises ``Unusable`` for rows that the model has no positions for. Pictures may take fewer than tokens, so that
    what is longer is asked about with its ``images``.
    """
    if view.positions is not None and max(len(each.ids) for each in encoded) > view.positions:
        try:
            view.batch(encoded, images(), "right")
        except UserError as error:
            raise Unusable(str(error), TOO_LONG) from error


def _shown(image: Image.Image) -> Prompt:
    return Prompt((Segment(Role.IMAGE, image=image), Segment(Role.QUESTION, ".")))
