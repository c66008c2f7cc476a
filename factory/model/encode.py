"""Prompts to tokens with roles. Roles come from character offsets over the rendered chat template, never from
lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from factory.data.prompt import Prompt, Role
from factory.errors import UserError

PaddingSide = Literal["left", "right"]
FIRST_MARK = 0xE000
MARKS = f"{chr(FIRST_MARK)}-{chr(0xF8FF)}"


@dataclass(frozen=True)
class Encoded:
    """One prompt as token ids, roles and character offsets in the rendered ``text`` (all of length T)."""

    ids: list[int]
    roles: list[int]
    text: str
    offsets: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Batch(Mapping[str, Tensor]):
    """A padded batch. As a mapping it holds what the model takes, so ``model.generate(**batch)`` works.

    Attributes: ``input_ids``, ``attention_mask``, ``roles`` [B, T] (``Role`` values, 0 on padding), ``position_ids``
    [B, T] or [axes, B, T], ``images`` the image processor's outputs for all images of the batch in reading order,
    ``of_tokens`` the further inputs [B, T] that a family's model takes.
    """

    input_ids: Tensor
    attention_mask: Tensor
    roles: Tensor
    position_ids: Tensor
    images: dict[str, Tensor] = field(default_factory=dict)
    of_tokens: dict[str, Tensor] = field(default_factory=dict)

    def _inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.of_tokens, **self.images}

    def __getitem__(self, key: str) -> Tensor:
        return self._inputs()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs())

    def __len__(self) -> int:
        return len(self._inputs())

    @property
    def size(self) -> int:
        return self.input_ids.shape[0]

    def mask(self, *roles: Role) -> Tensor:
        """[B, T] booleans: tokens with one of ``roles``."""
        return torch.isin(self.roles, torch.tensor([int(r) for r in roles], device=self.roles.device))

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        images = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in self.images.items()}
        return replace(self._mapped(lambda t: t.to(device)), images=images)

    def columns(self, first: int, end: int | None = None) -> Batch:
        """The columns ``first`` to ``end``, with all images."""
        return self._mapped(lambda t: t[..., first:end])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with its tensors of tokens changed."""
        parts = (self.input_ids, self.attention_mask, self.roles, self.position_ids)
        return Batch(*map(change, parts), self.images, {k: change(v) for k, v in self.of_tokens.items()})


@dataclass(frozen=True)
class Writing:
    """How prompts are written for a model: its tokenizer, its chat template, what the template writes for an image
    (``placeholder``), and the token that image features take the place of."""

    tokenizer: Any
    template: str | None
    placeholder: str
    image_token: str

    def reserved(self, text: str) -> str | None:
        """A token with a meaning of its own that ``text`` spells: it would add an image or end the prompt."""
        return next((t for t in self.special if t in text), None)

    @property
    def special(self) -> list[str]:
        """Tokens that no text of a prompt may spell."""
        return [self.image_token, self.placeholder, *self.tokenizer.all_special_tokens]


def encode_one(writing: Writing, prompt: Prompt, images: Sequence[str]) -> Encoded:
    """Tokens and roles of one prompt; ``images`` are the texts that stand for its images.

    Raises ``UserError`` where a text spells a special token, which would add an image or end the prompt.
    """
    for segment in prompt.segments:
        if spelt := writing.reserved(segment.text):
            raise UserError(
                f"a {segment.role.name.lower()} text spells the model's special token '{spelt}'; change the text:"
                f" {segment.text[:80]!r}"
            )
    text, char_roles = render(writing, prompt, images)
    bos = writing.tokenizer.bos_token
    tokens = writing.tokenizer(text, add_special_tokens=not (bos and bos in text), return_offsets_mapping=True)
    offsets = list(tokens["offset_mapping"])
    roles = [_role(text, char_roles, start, end) for start, end in offsets]
    return Encoded(list(tokens["input_ids"]), roles, text, offsets)


def render(writing: Writing, prompt: Prompt, images: Sequence[str]) -> tuple[str, list[int]]:
    """The chat template's text with images written out, and the role of each character.

    The template is rendered with a private-use mark in the place of each text, and the texts are put in afterwards:
    their places are then known exactly, whatever their words. Raises ``UserError`` when the template drops,
    repeats or reorders a segment, be it a text or an image.
    """
    marked = _apply_template(writing, prompt.messages(lambda i, _: chr(FIRST_MARK + i)), generate=not prompt.answered)
    text: list[str] = []
    roles: list[int] = []
    seen = iter([(i, images[n]) for n, i in enumerate(i for i, s in enumerate(prompt.segments) if s.image is not None)])
    placed: list[int] = []

    def put(piece: str, role: Role) -> None:
        text.append(piece)
        roles.extend([int(role)] * len(piece))

    for piece in re.split(f"([{MARKS}]|{re.escape(writing.placeholder)})", marked):
        if piece == writing.placeholder:
            at, written = next(seen, (-1, ""))
            placed.append(at)
            for part in re.split(f"({re.escape(writing.image_token)})", written):
                put(part, Role.IMAGE if part == writing.image_token else Role.TEMPLATE)
        elif len(piece) == 1 and ord(piece) >= FIRST_MARK:
            placed.append(ord(piece) - FIRST_MARK)
            segment = prompt.segments[placed[-1]]
            put(segment.text, segment.role)
        else:
            put(piece, Role.TEMPLATE)
    if placed != list(range(len(prompt.segments))):
        moved = sorted(placed) == list(range(len(prompt.segments)))
        raise UserError(
            "the model's chat template drops, repeats or reorders a part of the prompt: "
            + (
                "it puts images before texts; put them first in the prompt, or save another chat template"
                if moved
                else "token roles cannot be told"
            )
        )
    return "".join(text), roles


def images_first(writing: Writing) -> bool:
    """Whether the chat template writes the images of a turn before its texts, whatever their order in the prompt."""
    turn = {"role": "user", "content": [{"type": "text", "text": chr(FIRST_MARK)}, {"type": "image"}]}
    written = _apply_template(writing, [turn], generate=True)
    return 0 <= written.find(writing.placeholder) < written.find(chr(FIRST_MARK))


def _apply_template(writing: Writing, messages: list[dict], generate: bool) -> str:
    if not writing.template:
        raise UserError("the model's processor has no chat template: save one beside it (chat_template.jinja)")
    return writing.tokenizer.apply_chat_template(
        messages, chat_template=writing.template, add_generation_prompt=generate, tokenize=False
    )


def _role(text: str, char_roles: list[int], start: int, end: int) -> int:
    """Role of a token: that of its first character that is not white space."""
    at = next((i for i in range(start, end) if not text[i].isspace()), start)
    return char_roles[at] if start < end else int(Role.TEMPLATE)


def pad(rows: Sequence[Sequence[int]], value: int, side: PaddingSide) -> Tensor:
    width = max(len(r) for r in rows)
    fill = [[value] * (width - len(r)) for r in rows]
    return torch.tensor(
        [[*f, *r] if side == "left" else [*r, *f] for r, f in zip(rows, fill, strict=True)], dtype=torch.long
    )
