"""Records to conversations: both formats, several images, text alone, and what is refused."""

from __future__ import annotations

import pytest

from factory.data.conversation import Unusable, parse
from factory.data.prompt import Role

Q, A, S, I = Role.QUESTION, Role.ANSWER, Role.SYSTEM, Role.IMAGE


def turn(speaker: str, text: str) -> dict:
    return {"from": speaker, "value": text}


def chat(role: str, content) -> dict:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        (
            {
                "id": 7,
                "image": "a.jpg",
                "conversations": [
                    turn("human", "<image>\nWhat?"),
                    turn("gpt", "A cat. "),
                    turn("human", "Sure?"),
                    turn("gpt", "Yes"),
                ],
            },
            [(I, "a.jpg"), (Q, "What?"), (A, "A cat."), (Q, "Sure?"), (A, "Yes")],
        ),
        (
            {
                "image": ["a.jpg", "b.jpg"],
                "conversations": [turn("human", "Is <image> like\n<image> ?"), turn("gpt", "No")],
            },
            [(Q, "Is"), (I, "a.jpg"), (Q, "like"), (I, "b.jpg"), (Q, "?"), (A, "No")],
        ),
        ({"conversations": [turn("human", "2+2"), turn("gpt", "4")]}, [(Q, "2+2"), (A, "4")]),
        (
            {"conversations": [turn("human", "What is this?\n<image>"), turn("gpt", "x")], "image": "a.jpg"},
            [(Q, "What is this?"), (I, "a.jpg"), (A, "x")],
        ),
        (
            {
                "messages": [chat("system", "Be brief"), chat("user", "<image>What?"), chat("assistant", "A dog")],
                "images": ["d.png"],
            },
            [(S, "Be brief"), (I, "d.png"), (Q, "What?"), (A, "A dog")],
        ),
        (
            {
                "messages": [
                    chat(
                        "user",
                        [{"type": "image", "image": "x.png"}, {"type": "text", "text": "and"}, {"type": "image"}],
                    ),
                    chat("assistant", [{"type": "text", "text": "ok"}]),
                ],
                "images": ["y.png"],
            },
            [(I, "x.png"), (Q, "and"), (I, "y.png"), (A, "ok")],
        ),
    ],
)
def test_formats(record, parts):
    conversation = parse(record, 3)
    assert list(conversation.parts) == parts
    assert conversation.id == str(record.get("id", 3))
    assert conversation.images == [text for role, text in parts if role == I]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no turns"),
        ({"conversations": []}, "no turns"),
        ({"conversations": [turn("human", "<image> x"), turn("gpt", "y")]}, "names 0 images, but 1 are marked"),
        (
            {"image": "a.jpg", "conversations": [turn("human", "x"), turn("gpt", "y")]},
            "names 1 images, but 0 are marked",
        ),
        ({"conversations": [turn("human", "x")]}, "not user"),
        ({"conversations": [turn("gpt", "x"), turn("human", "y")]}, "not assistant, user"),
        ({"conversations": [turn("human", "x"), turn("gpt", "y"), turn("gpt", "z")]}, "not user, assistant, assistant"),
        ({"conversations": [turn("human", "x"), turn("gpt", "  ")]}, "empty"),
        ({"conversations": [turn("human", "  "), turn("gpt", "x")]}, "not assistant"),
        ({"conversations": [turn("robot", "x")]}, "a turn by 'robot'"),
        ({"messages": [chat("user", 3)]}, "without a text"),
        ({"messages": [chat("user", [{"type": "audio"}]), chat("assistant", "x")]}, "neither text nor image"),
        ({"image": "https://x.org/a.jpg", "conversations": [turn("human", "<image>"), turn("gpt", "y")]}, "by address"),
        ({"conversations": ["x"]}, "no mapping"),
    ],
)
def test_what_cannot_be_used_says_why(record, reason):
    with pytest.raises(Unusable, match=reason):
        parse(record, 0)
