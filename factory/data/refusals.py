"""What a model cannot take of training rows and of pictures, told without its weights: by its tokenizer, its chat
template and its image processor themselves, asked with stand-ins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image

from factory import files
from factory.data.conversation import Conversation, Unusable
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError, quoted
from factory.model.encode import images_first, render
from factory.model.view import ModelView

Size = tuple[int, int]
SMALL, LONG = 32, 20  # pictures with a shorter side than that, or thinner than 1 to that, are asked about
THINNEST = 500  # image processors that scale the shorter side would make more than a billion pixels of a thinner one
REFUSED = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)  # what image processors raise
TRIED = ((336, 336), (640, 480))
SPELT, OF_TEMPLATE = "special token in a text", "refused by the chat template"
OF_IMAGE, TOO_LONG = "refused by the image processor", "too long"
BLANK = Image.new("RGB", (1, 1))
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


class Refusals:
    """The check of a data file's rows (``factory.data.index.Check``) for one model and one limit of tokens.

    Where a picture takes as many tokens as the next, whatever its size, they count towards the limit; else a row that
    is too long by its pictures is found when it is read.
    """

    def __init__(self, view: ModelView, max_tokens: int | None) -> None:
        self.view, self.writing, self.max_tokens = view, view.writing, max_tokens
        self.images_first = images_first(self.writing)
        self.shapes = Shapes(view)
        special = sorted({token for token in self.writing.special if token}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)))
        self._layouts: dict[tuple[Role, ...], str | None] = {}
        taken = {self._tokens(size) for size in TRIED}
        self.per_image = taken.pop() if len(taken) == 1 else 0
        self.identity = files.digest(
            [
                special,
                self.writing.template,
                self.writing.placeholder,
                type(view.tokenizer).__name__,
                len(view.tokenizer),
                view.processor.image_processor.to_json_string(),
                max_tokens,
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
        self._check_length(conversation)

    def _layout(self, roles: tuple[Role, ...]) -> str | None:
        """Why the chat template refuses turns of these roles, whatever they say."""
        if roles not in self._layouts:
            prompt = Prompt(
                tuple(Segment(role, image=BLANK) if role == Role.IMAGE else Segment(role, "a") for role in roles)
            )
            try:
                prompt = prompt.images_first() if self.images_first else prompt
                render(self.writing, prompt, [self.writing.image_token] * len(prompt.images), ended=True)
                self._layouts[roles] = None
            except UserError as error:
                self._layouts[roles] = str(error)
        return self._layouts[roles]

    def _check_length(self, conversation: Conversation) -> None:
        """The texts and pictures before the first answer leave room for a token of it, as far as can be told."""
        if self.max_tokens is None:
            return
        first = next(i for i, (role, _) in enumerate(conversation.parts) if role == Role.ANSWER)
        texts = [text for role, text in conversation.parts[:first] if role != Role.IMAGE]
        pictures, room = self.per_image * (first - len(texts)), self.max_tokens - AROUND
        if pictures + sum(len(text.encode()) for text in texts) < room:
            return
        words = self.view.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        if pictures + sum(map(len, words)) + 2 * len(words) < room:
            return
        asked = self._asked(conversation.parts[: first + 1])
        if asked >= self.max_tokens:
            raise Unusable(
                f"takes {'' if self.per_image else 'at least '}{asked} tokens before its first answer;"
                f" tune.data.max_tokens={self.max_tokens} leaves none for the answer",
                TOO_LONG,
            )

    def _asked(self, parts: Sequence[tuple[Role, str]]) -> int:
        """Tokens before the first answer; a picture is one where that follows from its size."""
        prompt = Prompt(
            tuple(Segment(role, image=BLANK) if role == Role.IMAGE else Segment(role, text) for role, text in parts)
        )
        prompt = prompt.images_first() if self.images_first else prompt
        written = self.writing.image_token * max(self.per_image, 1)
        (encoded,) = self.view.tokens([prompt], [[written] * len(prompt.images)], ended=True)
        return encoded.answers.index(True)

    def _tokens(self, size: Size) -> int:
        prompt = _shown(Image.new("RGB", size))
        _, written = self.view.images_of([prompt])
        return self.view.tokens([prompt], written)[0].roles.count(int(Role.IMAGE))


def _shown(image: Image.Image) -> Prompt:
    return Prompt((Segment(Role.IMAGE, image=image), Segment(Role.QUESTION, ".")))
