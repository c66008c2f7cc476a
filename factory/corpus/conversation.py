"""One record of instruction-tuning data as a conversation: LLaVA-JSON and sharegpt (``conversations``), chat messages
(``messages``), alpaca, or query and response (``factory.corpus.layouts``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

from factory.corpus.layouts import LEARNT, Unusable, absent, is_learnt, one_of, turns_of
from factory.data import pictures
from factory.data.prompt import SPEAKERS, Prompt, Role, Segment
from factory.errors import quoted

PLACEHOLDER = "<image>"
ROLES = {
    "system": Role.SYSTEM,
    "human": Role.QUESTION,
    "user": Role.QUESTION,
    "gpt": Role.ANSWER,
    "assistant": Role.ANSWER,
}
# Keys that change what is learnt, as other tools read them, with the values that ask for nothing.
OF_LOSS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("loss", "train", "training"), (True,)),
    **dict.fromkeys(("weight", "sample_weight", "loss_weight", "loss_scale"), (1,)),
    **dict.fromkeys(("mask", "masks", "loss_mask", "train_detail", "train_on_turn", "masked"), ()),
}
OF_MEDIA = dict.fromkeys(("video", "videos", "audio", "audios"), ())
OF_ITEM = OF_LOSS | OF_MEDIA | dict.fromkeys(("base64", "image_url"), ())
OF_TURN = (
    {key: values for key, values in OF_LOSS.items() if key not in LEARNT}
    | OF_MEDIA
    | dict.fromkeys(
        ("tools", "tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking")
        + ("image", "images"),
        (),
    )
)
OF_RECORD: dict[str, tuple[Any, ...]] = (
    OF_LOSS
    | OF_MEDIA
    | dict.fromkeys(
        ("kto_tag", "chosen", "rejected")
        + ("rejected_response", "rejected_messages", "rejected_images", "chat_template_kwargs"),
        (),
    )
    | dict.fromkeys(("tools", "functions"), ("[]", "{}"))  # tables of text hold them as JSON
)
UNWANTED = "label"  # False beside an answer that should not be given (KTO); anything else is a note of its author's
IN_ITEM = ("image", "path", "url")  # the first that says something is the picture
LONGEST_PATH = 4096  # characters; the longest path that Linux takes
LONGEST_NAME, SHOWN_TURNS = 80, 8
IN_ROW = "the picture in its row"
_SPLIT = re.compile(rf"\s*({re.escape(PLACEHOLDER)})\s*")
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Conversation:
    """Turns in reading order: ``(role, text)``, an image as ``(Role.IMAGE, picture)``, where the picture is the path
    that the record has, or the bytes of a file where the record itself holds them (Parquet). ``unlearnt``: answers
    that are read and not learnt, by their number from 0. ``task`` is what the record names its kind.
    """

    id: str
    parts: tuple[tuple[Role, Any], ...]
    unlearnt: frozenset[int] = frozenset()
    task: str = ""

    @property
    def images(self) -> list[str | bytes]:
        return [picture for role, picture in self.parts if role == Role.IMAGE]

    @property
    def texts(self) -> list[str]:
        return [text for role, text in self.parts if role != Role.IMAGE]

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))

    def prompt(self, folder: Path) -> Prompt:
        """The conversation with its images read from ``folder``. Raises ``Unusable`` for one that cannot be read."""
        segments, answers = [], 0
        for role, part in self.parts:
            if role == Role.IMAGE:
                segments.append(Segment(role, image=_read(folder, part)))
            else:
                segments.append(Segment(role, part, learnt=role != Role.ANSWER or answers not in self.unlearnt))
                answers += role == Role.ANSWER
        return Prompt(tuple(segments), task=self.task)


def parse(record: Mapping[str, Any], number: int, mask_history: bool = False) -> Conversation:
    """The conversation of a record; ``number`` names one without an ``id``; with ``mask_history``, which a record may
    also ask for itself, its last answer alone is learnt. Raises ``Unusable`` saying what is wrong with it.

    ``conversations: [{from: human|gpt|system, value}]`` or ``messages: [{role: user|assistant|system, content}]``,
    where content is a text or a list of ``{type: text, text}`` and ``{type: image, image|path|url}``. ``image`` or
    ``images`` (a path or a list) are the files that the ``<image>`` marks in the texts, and the image items without a
    path, stand for, in order. ``instruction``, ``input`` and ``output``, or ``query`` and ``response``, with
    ``history`` (pairs), are read as well, and a ``system`` text. In an answer's turn ``loss``, ``train`` or ``weight``
    of false or 0 leaves it unlearnt. ``task`` (a text) names the record's kind. A key that is null or empty counts as
    absent; one that asks for something which is not done here (another loss, a tool, a film) is refused by name.
    """
    _refuse(record, OF_RECORD, "")
    if record.get(UNWANTED) is False:
        raise Unusable(
            f"has the key '{UNWANTED}' (False), which marks an answer that should not be given; take the row out",
            f"key '{UNWANTED}' is not honoured",
        )
    turns, named = turns_of(record), one_of(record, "images", "image")
    named = [] if named is None else named if isinstance(named, list) else [named]
    named = [picture for picture in named if not absent(picture)]
    parts: list[tuple[Role, Any]] = []
    learnt: list[bool] = []
    for turn in turns:
        parts += _turn(turn)
        own = is_learnt(turn)
        if parts and parts[-1][0] == Role.ANSWER:
            learnt.append(own)
    waiting = [i for i, (role, text) in enumerate(parts) if role == Role.IMAGE and text is None]
    if len(waiting) != len(named):
        raise Unusable(
            f"names {len(named)} images, but {len(waiting)} are marked {PLACEHOLDER} in its turns",
            "images and marks differ in number",
        )
    for at, picture in zip(waiting, named, strict=True):
        parts[at] = (Role.IMAGE, _picture(picture))
    _check_order([role for role, _ in parts])
    if not absent(said := record.get("mask_history")) and said not in (0, 1):
        raise Unusable(
            f"has the key 'mask_history' ({quoted(said)}); true and false are honoured, so take it out",
            "key 'mask_history' is neither true nor false",
        )
    if mask_history or said:
        learnt[:-1] = [False] * (len(learnt) - 1)
    if not any(learnt):
        raise Unusable("has no answer that is learnt", "nothing to learn")
    unlearnt, task = frozenset(i for i, own in enumerate(learnt) if not own), record.get("task")
    return Conversation(name_of(record, number), tuple(parts), unlearnt, task if isinstance(task, str) else "")


def name_of(record: Mapping[str, Any], number: int) -> str:
    """What a record is called in messages: its ``id``, cut where it is long, else its number."""
    name = record.get("id")
    name = str(number) if absent(name) else str(name)
    return name if len(name) <= LONGEST_NAME and name.isprintable() else quoted(name, LONGEST_NAME)


def halved(text: str) -> str | None:
    """Half of a character in a text, which no tokenizer takes, by name; None where there is none."""
    found = _HALF.search(text)
    return f"half a character (the lone surrogate U+{ord(found[0]):04X})" if found else None


def _refuse(where: Mapping[str, Any], keys: Mapping[str, tuple[Any, ...]], of: str) -> None:
    for key in keys.keys() & where.keys():
        value = where[key]
        if not absent(value) and value not in keys[key]:
            raise Unusable(
                f"has the key '{key}'{of} ({quoted(value)}), which is not honoured here; take it out, or the row",
                f"key '{key}' is not honoured",
            )


def _turn(turn: Any) -> list[tuple[Role, Any]]:
    if not isinstance(turn, Mapping):
        raise Unusable(f"has a turn that is no mapping: {quoted(turn)}")
    _refuse(turn, OF_TURN, " in a turn")
    speaker = turn.get("from", turn.get("role"))
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise Unusable(f"has a turn by {quoted(speaker)}; speakers are {', '.join(ROLES)}", "unknown speaker")
    role, content = ROLES[speaker], turn.get("value", turn.get("content"))
    if isinstance(content, str):
        parts = _text(content, role)
    elif isinstance(content, list):
        parts = [part for item in content for part in _item(item, role)]
    else:
        raise Unusable(f"has a turn by '{speaker}' without a text", "turn without a text")
    if role == Role.ANSWER and (len(parts) != 1 or parts[0][0] != Role.ANSWER):
        raise Unusable("has an answer that is empty or is not one text", "answer that is not one text")
    return parts


def _item(item: Any, role: Role) -> list[tuple[Role, Any]]:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if isinstance(item, Mapping):
        _refuse(item, OF_ITEM, " in a content item")
    if kind == "image":
        picture = next((item[key] for key in IN_ITEM if not absent(item.get(key))), None)
        return [(Role.IMAGE, None if picture is None else _picture(picture))]
    if kind != "text" or not isinstance(item.get("text"), str):
        raise Unusable(
            f"has a content item that is neither text nor image: {quoted(item)}",
            f"content of type {quoted(kind, 20)}" if isinstance(kind, str) else "content that is no text",
        )
    return _text(item["text"], role)


def _text(text: str, role: Role) -> list[tuple[Role, Any]]:
    if half := halved(text):
        raise Unusable(f"holds {half} in {quoted(text)}", "half a character")
    if PLACEHOLDER not in text:
        return [(role, text.strip())] if text.strip() else []
    pieces = [piece.strip() for piece in _SPLIT.split(text)]
    return [(Role.IMAGE, None) if piece == PLACEHOLDER else (role, piece) for piece in pieces if piece]


def _picture(value: Any) -> str | bytes:
    """The path of a picture, or its bytes. ``{bytes, path}`` is how Parquet files hold one."""
    if isinstance(value, Mapping):
        value = value.get("path") if absent(value.get("bytes")) else value["bytes"]
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise Unusable(f"names an image that is no path: {quoted(value)}", "image that is no path")
    if value.lower().startswith("file:"):
        return unquote(re.sub(r"^file:(//(localhost(?=/))?)?", "", value, flags=re.IGNORECASE))
    if value.startswith("data:") or len(value) > LONGEST_PATH:
        raise Unusable(
            f"holds an image as base64 text: {quoted(value, 40)}; write it to a file and give its path",
            "image as base64 text",
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value):
        raise Unusable(f"names an image by address: {quoted(value)}; download it and give its path", "image by address")
    return value


def _check_order(roles: Iterable[Role]) -> None:
    """An optional system turn, then user turns (texts and images) and answers in turn, the last one an answer."""
    speakers = [SPEAKERS.get(role, "user") for role in roles]
    turns = [s for i, s in enumerate(speakers) if s == "assistant" or i == 0 or speakers[i - 1] != s]
    turns = turns[1:] if turns[:1] == ["system"] else turns
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        shown = ", ".join(turns[:SHOWN_TURNS]) + ", …" * (len(turns) > SHOWN_TURNS)
        raise Unusable(
            f"its turns should be user and assistant in turn and end with the assistant's, not {shown or 'none'}",
            "turns out of order",
        )


def _read(folder: Path, picture: str | bytes) -> Image.Image:
    try:
        return pictures.decode(picture, IN_ROW) if isinstance(picture, bytes) else pictures.load(folder / picture)
    except pictures.Unreadable as error:
        raise Unusable(f"its image cannot be read: {error}", "image cannot be read") from error
