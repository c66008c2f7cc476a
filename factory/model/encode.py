"""Prompts to tokens with roles. Roles come from character offsets over the rendered chat template, never from
lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor

from factory.data.prompt import SPEAKERS, Prompt, Role, Segment
from factory.errors import UserError
from factory.model.steps import named

PaddingSide = Literal["left", "right"]
SPEAKERS_SHOWN = 6
REFUSING = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # what templates raise
FIRST_MARK = 0xE000
MARKS = f"{chr(FIRST_MARK)}-{chr(0xF8FF)}"


@dataclass(frozen=True)
class Encoded:
    """One prompt as token ids, roles and character offsets in the rendered ``text`` (all of length T).

    ``answers`` tells the tokens that a model says: those of each answer and the end token after it. An end token within
    a prompt has the template's role, one that ends it the answer's.
    """

    ids: list[int]
    roles: list[int]
    text: str
    offsets: list[tuple[int, int]] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)


@dataclass
class Batch(Mapping[str, Tensor]):
    """A padded batch. As a mapping it holds what the model takes, so ``model.generate(**batch)`` works; its
    ``input_ids`` know their roles, so that whoever watches the model finds them there (``factory.model.steps``).

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

    def __post_init__(self) -> None:
        self.input_ids = named(self.input_ids, self.roles)

    def _inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.of_tokens, **self.images}

    def __getitem__(self, key: str) -> Tensor:
        if not isinstance(key, str):
            raise UserError("a batch is cut into no rows: encode the prompts of each part with view.encode(prompts)")
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

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The batch on ``device``, its images in ``dtype`` (None: as they are)."""
        images = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in self.images.items()}
        return replace(self._mapped(lambda t: t.to(device)), images=images)

    def columns(self, first: int, end: int | None = None) -> Batch:
        """The columns ``first`` to ``end``, with all images."""
        return self._mapped(lambda t: t[..., first:end])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with its tensors of tokens changed."""
        ids, mask, roles, positions = map(change, (self.input_ids, self.attention_mask, self.roles, self.position_ids))
        return Batch(ids, mask, roles, positions, self.images, {k: change(v) for k, v in self.of_tokens.items()})


@dataclass(frozen=True)
class Writing:
    """How prompts are written for a model: its tokenizer, its chat template, what the template writes for an image
    (``placeholder``), the token that image features take the place of, the ids that end an answer, whether the
    template takes a turn's content as one text (``plain``), not as items, some of which are images, and what the
    template is told beside the turns (``told``)."""

    tokenizer: Any
    template: str | None
    placeholder: str
    image_token: str
    ends: tuple[int, ...] = ()
    plain: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)

    def reserved(self, text: str) -> str | None:
        """A token with a meaning of its own that ``text`` spells: it would add an image or end the prompt."""
        return next((t for t in self.special if t in text), None)

    @property
    def special(self) -> list[str]:
        """Tokens that no text of a prompt may spell."""
        return [self.image_token, self.placeholder, *control_tokens(self.tokenizer, len(self.tokenizer))]

    def closing(self, text: str) -> str:
        """The white space and the end token that ``text`` begins with; empty where no end token comes first."""
        names = [re.escape(name) for name in self.tokenizer.convert_ids_to_tokens(list(self.ends)) if name]
        found = re.match(rf"\s*(?:{'|'.join(names)})", text) if names else None
        return found.group() if found else ""

    def apply(self, turns: list[dict], generate: bool) -> str:
        """The chat template's text of ``turns``, with the prompt for an answer where one is to be generated."""
        return _apply_template(self, turns, generate)


@lru_cache(maxsize=8)
def control_tokens(tokenizer: Any, size: int) -> tuple[str, ...]:
    """What a tokenizer of ``size`` tokens reads as control tokens: those that it names, and those that it only marks so
    (``special`` in ``added_tokens_decoder``)."""
    marked = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(dict.fromkeys((*tokenizer.all_special_tokens, *marked)))


@dataclass(frozen=True)
class Piece:
    """A part of a rendered prompt, the role of each character beside it: all up to and with a generation prompt, or an
    ``answer``, which ends with an end token that the text spells or, where it is ``unended``, does not."""

    text: str
    roles: list[int]
    answer: bool = False
    unended: bool = False


def encode_one(writing: Writing, prompt: Prompt, images: Sequence[str], ended: bool = False) -> Encoded:
    """Tokens and roles of one prompt; ``images`` are the texts that stand for its images.

    Everything after a generation prompt, through the end token, is the answer, whatever the tokenizer makes of it: the
    prompt's ids are those that it has without the answer, and the answer's go on from there. The last answer is open,
    so that it can be gone on with, unless ``ended``, as for a sample to learn.

    Raises ``UserError`` where a text spells a special token, which would add an image or end the prompt.
    """
    for segment in prompt.segments:
        if spelt := writing.reserved(segment.text):
            raise UserError(
                f"a {segment.role.name.lower()} text spells the model's special token '{spelt}'; change the text:"
                f" {segment.text[:80]!r}"
            )
    first, *following = render(writing, prompt, images, ended)
    text, bos = first.text, writing.tokenizer.bos_token
    tokens = writing.tokenizer(text, add_special_tokens=not (bos and bos in text), return_offsets_mapping=True)
    ids, offsets = list(tokens["input_ids"]), [tuple(span) for span in tokens["offset_mapping"]]
    roles, answers = [_role(text, first.roles, start, end) for start, end in offsets], [False] * len(ids)
    for piece in following:
        more, spans = continued(writing, text, piece.text)
        offsets += [(start + len(text), end + len(text)) for start, end in spans]
        text += piece.text
        if piece.unended:
            more.append(writing.ends[0])
            offsets.append((len(text), len(text)))
        closed = piece is not following[-1] and piece.answer and more[-1] in writing.ends
        of_texts = [_role(piece.text, piece.roles, *span) for span in spans]
        roles += [int(Role.ANSWER)] * (len(more) - closed) + [int(Role.TEMPLATE)] * closed if piece.answer else of_texts
        ids += more
        answers += [piece.answer] * len(more)
    return Encoded(ids, roles, text, offsets, answers)


def continued(writing: Writing, text: str, piece: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of ``piece`` as it goes on after ``text``, whose own ids stay as they are.

    Where the tokenizer would join the two, the piece is read after a character that it leaves alone.
    """
    if not piece:
        return [], []
    begins = max(text.rfind(token) for token in writing.special)  # texts between special tokens are read one by one
    for before in (text[max(begins, 0) :], *"\na.1"):
        base = writing.tokenizer(before, add_special_tokens=False)["input_ids"]
        whole = writing.tokenizer(before + piece, add_special_tokens=False, return_offsets_mapping=True)
        if whole["input_ids"][: len(base)] == base:
            break
    else:
        base, before = [], ""
        whole = writing.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
    spans = whole["offset_mapping"][len(base) :]
    return list(whole["input_ids"][len(base) :]), [
        (max(start - len(before), 0), max(end - len(before), 0)) for start, end in spans
    ]


def render(writing: Writing, prompt: Prompt, images: Sequence[str], ended: bool = False) -> list[Piece]:
    """The chat template's text with images written out, cut where answers begin and end.

    The template is rendered with a private-use mark in the place of each text, and the texts are put in afterwards:
    their places are then known exactly, whatever their words. An answer follows the generation prompt that the template
    writes for the turns before it, also where the template writes an answered turn otherwise; its own white space is
    never trimmed. Raises ``UserError`` when the template drops, repeats or reorders a segment, be it a text or an
    image.
    """
    layout = _Layout(writing, prompt, images)
    pieces: list[Piece] = []
    done, left = "", layout.whole
    for turn, (first, last) in layout.answers:
        opened = writing.apply(layout.turns[:turn], True) if turn else layout.whole[: layout.whole.index(first)]
        begun, closed = opened[opened.rfind(done) + 1 if done else 0 :], ""
        if done:
            closed = writing.closing(begun)
            pieces[-1] = layout.ended(pieces[-1], closed)
        pieces.append(layout.put(begun[len(closed) :]))
        answer = layout.whole[layout.whole.index(first) : layout.whole.index(last) + 1]
        pieces.append(replace(layout.put(layout.parted(opened, first) + answer), answer=True))
        done, left = last, layout.whole[layout.whole.index(last) + 1 :]
    closed = writing.closing(left) if done else ""
    if done and (ended or not prompt.answered):
        pieces[-1] = layout.ended(pieces[-1], closed)
    return pieces if prompt.answered else [*pieces, layout.put(left[len(closed) :])]


class _Layout:
    """A prompt as its model's template writes it, with marks for its texts and placeholders for its images.

    ``whole`` is the template's text of all turns, ``answers`` the assistant's turns with the marks that each begins and
    ends with.
    """

    def __init__(self, writing: Writing, prompt: Prompt, images: Sequence[str]) -> None:
        self.writing, self.segments, self.images = writing, prompt.segments, list(images)
        self.turns = prompt.messages(self._spaced)
        self.whole = writing.apply(self.turns, not prompt.answered)
        self._check()
        self.answers = [
            (turn, (_mark(at[0]), _mark(at[-1]))) for turn, at in enumerate(self._turns()) if self._said(at)
        ]
        spaced = any(self._spaced(i, s) != _mark(i) for i, s in enumerate(self.segments))
        self.bare = writing.apply(prompt.messages(lambda i, _: _mark(i)), not prompt.answered) if spaced else self.whole

    def _turns(self) -> list[list[int]]:
        speaker = lambda i: SPEAKERS.get(self.segments[i].role, "user")
        return [list(run) for _, run in groupby(range(len(self.segments)), speaker)]

    def _said(self, at: list[int]) -> bool:
        return self.segments[at[0]].role == Role.ANSWER

    def _spaced(self, index: int, segment: Segment) -> str:
        """A text's mark between the white space that it begins and ends with, which a template may trim."""
        text, core = segment.text, segment.text.strip()
        if segment.role == Role.ANSWER or text == core:
            return _mark(index)
        lead = text[: len(text) - len(text.lstrip())]
        return lead + _mark(index) + text[len(lead) + len(core) :]

    def _check(self) -> None:
        pictures = iter(i for i, s in enumerate(self.segments) if s.image is not None)
        placed = [
            next(pictures, -1) if piece == self.writing.placeholder else ord(piece) - FIRST_MARK
            for piece in re.findall(f"[{MARKS}]|{re.escape(self.writing.placeholder)}", self.whole)
        ]
        if placed != list(range(len(self.segments))):
            moved = sorted(placed) == list(range(len(self.segments)))
            raise UserError(
                "the model's chat template drops, repeats or reorders a part of the prompt: "
                + (
                    "it puts images before texts; put them first in the prompt, or save another chat template"
                    if moved
                    else "token roles cannot be told"
                )
            )

    def parted(self, opened: str, first: str) -> str:
        """What parts an answer that begins with mark ``first`` from its generation prompt, which ``opened`` ends with.

        White space that the template writes in an answered turn alone counts only where the generation prompt has none.
        """
        head = self.whole[: self.whole.index(first)]
        between = head.removeprefix(opened) if head.startswith(opened) else head[len(head.rstrip()) :]
        return "" if not between.strip() and opened[-1:].isspace() else between

    def ended(self, piece: Piece, closed: str) -> Piece:
        """An answer with its end token."""
        if not closed:
            return replace(piece, unended=True)
        return replace(piece, text=piece.text + closed, roles=piece.roles + [int(Role.ANSWER)] * len(closed))

    def put(self, marked: str) -> Piece:
        """A part of the template's text with its texts and images in place."""
        text: list[str] = []
        roles: list[int] = []
        parts = re.split(f"([{MARKS}]|{re.escape(self.writing.placeholder)})", marked)
        for i, part in enumerate(parts):
            if part == self.writing.placeholder:
                written = self.images.pop(0)
                text.append(written)
                for bit in re.split(f"({re.escape(self.writing.image_token)})", written):
                    roles += [int(Role.IMAGE if bit == self.writing.image_token else Role.TEMPLATE)] * len(bit)
            elif i % 2:
                segment = self.segments[ord(part) - FIRST_MARK]
                core = segment.text if segment.role == Role.ANSWER else segment.text.strip()
                text.append(core)
                roles += [int(segment.role)] * len(core)
            else:
                text.append(part)
                roles += self._around(part, parts[i - 1 : i], parts[i + 1 : i + 2])
        return Piece("".join(text), roles)

    def _around(self, part: str, before: list[str], after: list[str]) -> list[int]:
        """Roles of what the template writes between two marks; what it kept of their texts' white space is theirs."""
        roles = [int(Role.TEMPLATE)] * len(part)
        for mark, way in ((before, 1), (after, -1)):
            if mark and mark[0] != self.writing.placeholder:
                segment = self.segments[ord(mark[0]) - FIRST_MARK]
                kept = self._kept(mark[0], segment, way)
                here = slice(0, kept) if way == 1 else slice(len(part) - kept, None)
                roles[here] = [int(segment.role)] * len(roles[here])
        return roles

    def _kept(self, mark: str, segment: Segment, way: int) -> int:
        """How many of a text's white space characters behind it (``way`` 1) or before it (-1) the template kept."""
        if segment.role == Role.ANSWER or segment.text == segment.text.strip():
            return 0
        own = self._spaced(0, segment).split(_mark(0))[way == 1]
        spaces = [len(_beside(text, mark, way)) for text in (self.whole, self.bare)]
        return min(len(own), spaces[0] - spaces[1])


def written(writing: Writing, prompt: Prompt) -> str:
    """The prompt as the chat template renders it, one image token for each picture."""
    return "".join(piece.text for piece in render(writing, prompt, [writing.image_token] * len(prompt.images)))


def _mark(index: int) -> str:
    return chr(FIRST_MARK + index)


def _beside(text: str, mark: str, way: int) -> str:
    """The white space directly behind a mark (``way`` 1) or before it (-1)."""
    before, _, after = text.partition(mark)
    return after[: len(after) - len(after.lstrip())] if way == 1 else before[len(before.rstrip()) :]


def images_first(writing: Writing) -> bool:
    """Whether the chat template writes the images of a turn before its texts, whatever their order in the prompt."""
    turn = {"role": "user", "content": [{"type": "text", "text": chr(FIRST_MARK)}, {"type": "image"}]}
    written = _apply_template(writing, [turn], generate=True)
    return 0 <= written.find(writing.placeholder) < written.find(chr(FIRST_MARK))


def _apply_template(writing: Writing, messages: list[dict], generate: bool) -> str:
    if not writing.template:
        raise UserError("the model's processor has no chat template: save one beside it (chat_template.jinja)")
    if writing.plain:
        messages = [{**turn, "content": "".join(c.get("text", "") for c in turn["content"])} for turn in messages]
    try:
        return writing.tokenizer.apply_chat_template(
            messages, chat_template=writing.template, add_generation_prompt=generate, tokenize=False, **writing.told
        )
    except REFUSING as error:  # such as its own "System role not supported", or texts taken for plain strings
        speakers = ", ".join(turn["role"] for turn in messages[:SPEAKERS_SHOWN])
        raise UserError(f"the model's chat template refuses turns by {speakers}: {error}") from error


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
