"""What goes over the wire: the part of OpenAI's chat completions that greedy answers of a steered model can honour."""

from __future__ import annotations

import base64
import binascii
import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt

from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    model_config = ConfigDict(frozen=True)

    url: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    model_config = ConfigDict(frozen=True)

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(Strict):
    """``direction`` and ``strength`` are ours (``extra_body`` of OpenAI's client): which artefact steers, and how
    strongly in place of its own strength; 0 leaves the model alone.

    Answers are greedy and one a request: other values of ``temperature``, ``top_p`` and ``n`` are refused, as is
    whatever is not named here.
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Literal[0] | None = None
    top_p: Literal[1] | None = None
    n: Literal[1] = 1
    seed: int | None = None
    user: str | None = None
    direction: str | None = None
    strength: FiniteFloat | None = None

    def prompt(self) -> Prompt:
        """Raises ``UserError`` for pictures that are not in the request, or not readable, and for other last turns than
        the user's."""
        if self.messages[-1].role != "user":
            raise UserError("messages: the last one should be the user's")
        return Prompt(tuple(segment for i, message in enumerate(self.messages) for segment in _segments(i, message)))


ROLES = {"system": Role.SYSTEM, "user": Role.QUESTION, "assistant": Role.ANSWER}


def _segments(i: int, message: Message) -> list[Segment]:
    role = ROLES[message.role]
    if isinstance(message.content, str):
        return [Segment(role, message.content)]
    if message.role != "user" and any(isinstance(part, ImagePart) for part in message.content):
        raise UserError(f"messages[{i}]: pictures belong to the user's messages")
    return [
        Segment(role, part.text) if isinstance(part, TextPart) else Segment(Role.IMAGE, image=_picture(i, part))
        for part in message.content
    ]


def _picture(i: int, part: ImagePart) -> Any:
    head, _, data = part.image_url.url.partition(";base64,")
    if not head.startswith("data:image/") or not data:
        raise UserError(f"messages[{i}]: a picture comes with the request, as data:image/png;base64,…; none is fetched")
    try:
        return pictures.decode(base64.b64decode(data, validate=True), f"messages[{i}]: the picture")
    except (binascii.Error, pictures.Unreadable) as error:
        raise UserError(f"messages[{i}]: the picture cannot be read: {error}") from error


def completion(model: str, text: str, reason: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    """The whole answer to a request that does not stream."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason, "logprobs": None}
    return {**_about(model, "chat.completion"), "choices": [choice], "usage": usage(prompt_tokens, tokens)}


def usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}


class Stream:
    """The chunks of one streamed answer; all bear one id."""

    def __init__(self, model: str) -> None:
        self.about = _about(model, "chat.completion.chunk")

    def chunk(self, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self.about, "choices": [choice]}

    def used(self, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        return {**self.about, "choices": [], "usage": usage(prompt_tokens, tokens)}


def _about(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def fault(message: str, code: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": code, "param": None, "code": None}}
