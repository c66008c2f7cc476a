"""Records to conversations: both formats, several images, text alone, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factory.corpus.conversation import Unusable, parse
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


ASKED = {"conversations": [turn("human", "What?"), turn("gpt", "A cat")]}
SHOWN = {"conversations": [turn("human", "<image>\nWhat?"), turn("gpt", "A cat")]}
PAIR = {"role": "assistant", "content": "A dog"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss", False),
        ("weight", 0),
        ("weight", 0.5),
        ("loss_mask", [0, 1]),
        ("tools", [{"name": "search"}]),
        ("tools", "[]x"),
        ("chosen", PAIR),
        ("rejected", PAIR),
        ("rejected_response", "A dog"),
        ("video", "a.mp4"),
        ("videos", ["a.mp4"]),
        ("audios", ["a.wav"]),
    ],
)
def test_a_key_of_a_row_that_would_be_dropped_is_refused_by_name(key, value):
    with pytest.raises(Unusable, match=f"has the key '{key}'.*not honoured") as told:
        parse({**ASKED, key: value}, 0)
    assert told.value.kind == f"key '{key}' is not honoured"
    for nothing in (None, [], {}, ""):
        assert parse({**ASKED, key: nothing}, 0) == parse(ASKED, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mask", [0, 1]),
        ("tool_calls", [{"id": "1"}]),
        ("reasoning_content", "Hm"),
        ("images", ["a.png"]),
    ],
)
def test_a_key_of_a_turn_that_would_be_dropped_is_refused_by_name(key, value):
    first, last = ASKED["conversations"]
    with pytest.raises(Unusable, match=f"has the key '{key}' in a turn.*not honoured"):
        parse({"conversations": [first, {**last, key: value}]}, 0)


def test_keys_that_ask_for_what_is_done_anyway_are_taken():
    first, last = ASKED["conversations"]
    row = {
        "loss": True,
        "weight": 1.0,
        "tools": "[]",
        "source": "coco",
        "conversations": [{**first, "loss": True}, {**last, "weight": 1}],
    }
    assert parse(row, 0) == parse(ASKED, 0)


NULLS = {"bytes": None, "path": None}  # how Parquet files hold no picture


@pytest.mark.parametrize("nothing", [None, [], "", {}, [None], [""], NULLS, [NULLS], {"bytes": b"", "path": None}])
def test_what_is_empty_counts_as_absent(nothing):
    assert parse({**SHOWN, "images": nothing, "image": "a.png"}, 0).images == ["a.png"]
    assert parse({**SHOWN, "image": nothing, "images": ["a.png"]}, 0).images == ["a.png"]
    assert parse({**ASKED, "image": nothing, "images": nothing}, 0).images == []
    assert parse({**ASKED, "messages": nothing or None}, 0) == parse(ASKED, 0)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"type": "text", "text": "x", "weight": 0}, "key 'weight' is not honoured"),
        ({"type": "text", "text": "x", "loss": False}, "key 'loss' is not honoured"),
        ({"type": "image", "video": "a.mp4"}, "key 'video' is not honoured"),
        ({"type": "image", "base64": "iVBORw0KGgo="}, "key 'base64' is not honoured"),
        ({"type": "image", "url": "https://x.org/a.png"}, "image by address"),
    ],
    ids=str,
)
def test_a_content_item_is_asked_for_what_it_says_as_turns_are(item, kind):
    row = {"messages": [chat("user", [item, {"type": "text", "text": "?"}]), chat("assistant", "y")]}
    with pytest.raises(Unusable) as told:
        parse(row | {"images": ["a.png"]}, 0)
    assert told.value.kind == kind


@pytest.mark.parametrize(
    "item",
    [
        {"image": None, "path": "a.png", "text": None},
        {"image": "", "path": "a.png"},
        {"image": NULLS, "url": "file:a.png"},
    ],
)
def test_the_picture_of_an_item_is_the_key_that_says_something(item):
    row = {"messages": [chat("user", [{"type": "image", **item}]), chat("assistant", "y")]}
    assert parse(row, 0).images == ["a.png"]


def test_an_answer_that_is_marked_as_unwanted_is_not_taught():
    with pytest.raises(Unusable, match="key 'label' .False., which marks an answer that should not be given"):
        parse({**ASKED, "label": False}, 0)
    assert parse({**ASKED, "label": "cat"}, 0) == parse({**ASKED, "label": 0}, 0) == parse(ASKED, 0)


def test_two_names_that_say_two_things_are_refused():
    assert parse({**SHOWN, "images": ["a.png"], "image": "a.png"}, 0).images == ["a.png"]
    with pytest.raises(Unusable, match="both 'images' and 'image', and they differ"):
        parse({**SHOWN, "images": ["a.png"], "image": "b.png"}, 0)
    with pytest.raises(Unusable, match="both 'messages' and 'conversations'"):
        parse({**ASKED, "messages": [chat("user", "x"), chat("assistant", "y")]}, 0)


def test_a_file_address_is_a_path(tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "a b.png")
    for name in (
        f"file://{tmp_path}/a%20b.png",
        f"file://localhost{tmp_path}/a b.png",
        "file://a b.png",
        "file:a b.png",
    ):
        shown = parse({**SHOWN, "image": name}, 0).prompt(tmp_path).images[0]
        assert shown.getpixel((0, 0)) == (255, 0, 0)


def test_a_record_may_hold_a_picture_itself(tmp_path):
    Image.new("RGB", (2, 2), "blue").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for picture in (data, {"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}, {"path": "a.png"}):
        found = parse({**SHOWN, "images": [picture]}, 0).prompt(tmp_path)
        assert np.asarray(found.images[0]).tolist() == [[[0, 0, 255]] * 2] * 2


BASE64 = base64.b64encode(bytes(range(256)) * 40).decode()


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({**SHOWN, "images": [f"data:image/png;base64,{BASE64}"] * 1}, "image as base64 text"),
        ({**SHOWN, "image": BASE64}, "image as base64 text"),
        ({**ASKED, "images": [f"data:image/png;base64,{BASE64}"] * 3}, "images and marks differ in number"),
        ({**SHOWN, "image": [[BASE64]]}, "image that is no path"),
        ({**SHOWN, "image": f"HTTPS://x.org/{BASE64}.png"[:3000]}, "image by address"),
        ({**ASKED, "tools": BASE64}, "key 'tools' is not honoured"),
        ({"conversations": [BASE64]}, "not a conversation"),
        ({"conversations": [turn(BASE64, "x")]}, "unknown speaker"),
        ({"conversations": [turn(["x"], "x")]}, "unknown speaker"),
        ({"messages": [chat("user", [{"type": BASE64}]), PAIR]}, None),
        ({"messages": [chat("user", [BASE64]), PAIR]}, "content that is no text"),
        ({"conversations": [turn("human", "x")] * 900 + [turn("gpt", "x")] * 900}, "turns out of order"),
        ({"conversations": [turn("human", BASE64 + "\ud83d"), turn("gpt", "x")]}, "half a character"),
    ],
)
def test_messages_are_short_whatever_a_row_holds(record, kind):
    with pytest.raises(Unusable) as told:
        parse(record, 0)
    assert len(str(told.value)) < 250 and str(told.value).isprintable()
    assert len(told.value.kind) < 60 and kind in (None, told.value.kind)


def test_a_picture_that_is_not_there_is_named_in_a_short_line():
    for name in ("x" * 4000, "a\0b.png", "a\ud83d.png", "a\nb.png"):
        with pytest.raises(Unusable, match="its image cannot be read: ") as told:
            parse({**SHOWN, "image": name}, 0).prompt(Path("/nowhere"))
        assert len(str(told.value)) < 400 and str(told.value).isprintable()


def test_half_a_character_is_told_where_whole_ones_are_taken():
    assert parse({"conversations": [turn("human", "Hi \U0001f600"), turn("gpt", "\U0001f44d")]}, 0).characters == 5
    for value in ("Hi \ud83d", "\ude00"):
        with pytest.raises(Unusable, match="half a character .*U\\+D[8E]"):
            parse({"conversations": [turn("human", "Hi"), turn("gpt", value)]}, 0)
