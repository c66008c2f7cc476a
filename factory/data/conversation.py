"""One record of instruction-tuning data as a conversation: LLaVA-JSON (``conversations``) or chat messages
(``messages``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from factory.data import pictures
from factory.data.prompt import SPEAKERS, Prompt, Role, Segment

PLACEHOLDER = "<image>"
ROLES = {
    "system": Role.SYSTEM,
    "human": Role.QUESTION,
    "user": Role.QUESTION,
    "gpt": Role.ANSWER,
    "assistant": Role.ANSWER,
}
_SPLIT = re.compile(rf"\s*({re.escape(PLACEHOLDER)})\s*")


class Unusable(ValueError):
    """A sample that cannot be trained on; the message says why."""


@dataclass(frozen=True)
class Conversation:
    """Turns in reading order: ``(role, text)``, an image as ``(Role.IMAGE, path)`` with the path as the record has
    it.
    """

    id: str
    parts: tuple[tuple[Role, str], ...]

    @property
    def images(self) -> list[str]:
        return [text for role, text in self.parts if role == Role.IMAGE]

    @property
    def characters(self) -> int:
        return sum(len(text) for role, text in self.parts if role != Role.IMAGE)

    def prompt(self, folder: Path) -> Prompt:
        """The conversation with its images read from ``folder``. Raises ``Unusable`` for one that cannot be read."""
        return Prompt(
            tuple(
                Segment(role, image=_read(folder / text)) if role == Role.IMAGE else Segment(role, text)
                for role, text in self.parts
            )
        )


def parse(record: dict[str, Any], number: int) -> Conversation:
    """The conversation of a record; ``number`` names one without an ``id``. Raises ``Unusable`` saying what is wrong
    with it.

    ``conversations: [{from: human|gpt|system, value}]`` or ``messages: [{role: user|assistant|system, content}]``,
    where content is a text or a list of ``{type: text, text}`` and ``{type: image, image|path}``. ``image`` or
    ``images`` (a path or a list) are the files that the ``<image>`` marks in the texts, and the image items without a
    path, stand for, in order.
    """
    turns = record.get("conversations") if record.get("messages") is None else record["messages"]
    if not isinstance(turns, list) or not turns:
        raise Unusable("has no turns under 'conversations' or 'messages'")
    named = record.get("images", record.get("image"))
    named = [] if named is None else named if isinstance(named, list) else [named]
    parts: list[tuple[Role, str | None]] = []
    for turn in turns:
        parts += _turn(turn)
    waiting = [i for i, (role, text) in enumerate(parts) if role == Role.IMAGE and text is None]
    if len(waiting) != len(named):
        raise Unusable(f"names {len(named)} images, but {len(waiting)} are marked {PLACEHOLDER} in its turns")
    for at, path in zip(waiting, named, strict=True):
        parts[at] = (Role.IMAGE, _path(path))
    _check_order([role for role, _ in parts])
    return Conversation(str(record.get("id", number)), tuple(parts))


def _turn(turn: Any) -> list[tuple[Role, str | None]]:
    if not isinstance(turn, dict):
        raise Unusable(f"has a turn that is no mapping: {str(turn)[:60]!r}")
    speaker = turn.get("from", turn.get("role"))
    if speaker not in ROLES:
        raise Unusable(f"has a turn by '{speaker}'; speakers are {', '.join(ROLES)}")
    role, content = ROLES[speaker], turn.get("value", turn.get("content"))
    if isinstance(content, str):
        parts = _text(content, role)
    elif isinstance(content, list):
        parts = [part for item in content for part in _item(item, role)]
    else:
        raise Unusable(f"has a turn by '{speaker}' without a text")
    if role == Role.ANSWER and (len(parts) != 1 or parts[0][0] != Role.ANSWER):
        raise Unusable("has an answer that is empty or is not one text")
    return parts


def _item(item: Any, role: Role) -> list[tuple[Role, str | None]]:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "image":
        path = item.get("image", item.get("path"))
        return [(Role.IMAGE, None if path is None else _path(path))]
    if kind != "text" or not isinstance(item.get("text"), str):
        raise Unusable(f"has a content item that is neither text nor image: {str(item)[:60]!r}")
    return _text(item["text"], role)


def _text(text: str, role: Role) -> list[tuple[Role, str | None]]:
    if PLACEHOLDER not in text:
        return [(role, text.strip())] if text.strip() else []
    pieces = [piece.strip() for piece in _SPLIT.split(text)]
    return [(Role.IMAGE, None) if piece == PLACEHOLDER else (role, piece) for piece in pieces if piece]


def _path(path: Any) -> str:
    if not isinstance(path, str) or not path:
        raise Unusable(f"names an image that is no path: {str(path)[:60]!r}")
    if re.match(r"[a-z]+://|data:", path):
        raise Unusable(f"names an image by address: {path[:60]}; download it and give its path")
    return path


def _check_order(roles: list[Role]) -> None:
    """An optional system turn, then user turns (texts and images) and answers in turn, the last one an answer."""
    speakers = [SPEAKERS.get(role, "user") for role in roles]
    turns = [s for i, s in enumerate(speakers) if s == "assistant" or i == 0 or speakers[i - 1] != s]
    turns = turns[1:] if turns[0] == "system" else turns
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise Unusable(
            "its turns should be user and assistant in turn and end with the assistant's, not"
            f" {', '.join(turns) or 'none'}"
        )


def _read(path: Path) -> Image.Image:
    try:
        return pictures.read(path)
    except pictures.Unreadable as error:
        raise Unusable(f"its image cannot be read: {error}") from error
