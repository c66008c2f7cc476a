"""Prompts: segments, turns, and rewriting that leaves the original alone."""

from __future__ import annotations

import pytest
from PIL import Image

from factory.data.instructions import INSTRUCTIONS, instruction
from factory.data.prompt import Prompt, Role, Segment
from tests.tiny import fresh_view

RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
CONTEXT, QUESTION, OPTIONS = Segment(Role.CONTEXT, "c"), Segment(Role.QUESTION, "q"), Segment(Role.OPTIONS, "o")
PROMPT = Prompt((Segment(Role.IMAGE, image=RED), CONTEXT, QUESTION, OPTIONS))


def roles(prompt: Prompt) -> list[Role]:
    return [s.role for s in prompt.segments]


def test_texts_of_a_turn_are_joined_by_newlines_and_images_are_items():
    assert PROMPT.messages() == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "c\nq\no"}]}]


def test_an_image_between_texts_keeps_its_place():
    items = Prompt((CONTEXT, Segment(Role.IMAGE, image=RED), QUESTION)).messages()[0]["content"]
    assert items == [{"type": "text", "text": "c"}, {"type": "image"}, {"type": "text", "text": "q"}]


def test_answers_and_system_are_turns_of_their_own():
    prompt = Prompt((Segment(Role.SYSTEM, "s"), QUESTION, Segment(Role.ANSWER, "a"), QUESTION, OPTIONS))
    turns = [(m["role"], m["content"][0]["text"]) for m in prompt.messages()]
    assert turns == [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "q\no")]


def test_the_writer_is_given_each_segment_with_its_index():
    assert PROMPT.messages(lambda i, s: f"{i}{s.text}")[0]["content"][1]["text"] == "1c\n2q\n3o"


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            lambda p: p.append(instruction("mc2", "text")),
            [Role.IMAGE, Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION],
        ),
        (
            lambda p: p.prepend(QUESTION, CONTEXT),
            [Role.QUESTION, Role.CONTEXT, Role.IMAGE, Role.CONTEXT, Role.QUESTION, Role.OPTIONS],
        ),
        (lambda p: p.before_question(OPTIONS), [Role.IMAGE, Role.CONTEXT, Role.OPTIONS, Role.QUESTION, Role.OPTIONS]),
        (lambda p: p.without(Role.IMAGE, Role.OPTIONS), [Role.CONTEXT, Role.QUESTION]),
    ],
)
def test_changes_make_a_new_prompt(change, expected):
    before = PROMPT.digest
    assert roles(change(PROMPT)) == expected
    assert PROMPT.digest == before and len(PROMPT.segments) == 4


def test_before_question_means_the_last_question_and_the_end_where_there_is_none():
    assert roles(Prompt((QUESTION, Segment(Role.ANSWER, "a"), QUESTION)).before_question(CONTEXT))[2:] == [
        Role.CONTEXT,
        Role.QUESTION,
    ]
    assert roles(Prompt((CONTEXT,)).before_question(OPTIONS)) == [Role.CONTEXT, Role.OPTIONS]


def test_answered_is_about_the_last_turn():
    assert not Prompt(()).answered and not PROMPT.answered
    done = PROMPT.append(Segment(Role.ANSWER, "A"))
    assert done.answered and not done.append(QUESTION).answered


def test_images_are_in_reading_order():
    prompt = Prompt((Segment(Role.IMAGE, image=BLUE), QUESTION, Segment(Role.IMAGE, image=RED)))
    assert [i.getpixel((0, 0)) for i in prompt.images] == [(0, 0, 255), (255, 0, 0)]


@pytest.mark.parametrize(
    "other",
    [
        Prompt((Segment(Role.IMAGE, image=BLUE), CONTEXT, QUESTION, OPTIONS)),
        Prompt((Segment(Role.IMAGE, image=RED), QUESTION, CONTEXT, OPTIONS)),
        Prompt((Segment(Role.IMAGE, image=RED), Segment(Role.OPTIONS, "c"), QUESTION, OPTIONS)),
        PROMPT.without(Role.IMAGE),
        Prompt((Segment(Role.IMAGE, image=RED), Segment(Role.CONTEXT, "cq"), Segment(Role.QUESTION, ""), OPTIONS)),
        Prompt((Segment(Role.IMAGE, image=RED.resize((RED.width * 2, RED.height // 2))), CONTEXT, QUESTION, OPTIONS)),
    ],
)
def test_the_digest_tells_roles_words_order_and_images_apart(other):
    assert other.digest != PROMPT.digest
    assert Prompt(PROMPT.segments).digest == PROMPT.digest


@pytest.mark.parametrize("style", list(INSTRUCTIONS))
def test_the_two_instructions_of_a_style_differ_and_name_their_modality(style):
    vision, text = instruction(style, "vision"), instruction(style, "text")
    assert vision.role == text.role == Role.INSTRUCTION and vision.text != text.text
    assert any(word in vision.text for word in ("image", "visual")) and "text" in text.text.lower()


def test_the_instructions_of_the_paper_are_word_for_word():
    assert INSTRUCTIONS["amps_eq9"] == {"vision": "based on visual context", "text": "based on text context"}
    assert INSTRUCTIONS["amps_rq1"]["vision"] == "Respond to the question based only on the image context"
    assert INSTRUCTIONS["amps_rq1"]["text"] == "Follow the text context rather than the image content"


# MC²'s prompt.py, as SPEC.md 3.2 gives it: every string ends with a space, and a newline joins it to the question
CASE = "In case there is an inconsistency between the "
MC2_STRINGS = [
    (
        "mc2",
        "text",
        "Text Context and the input image content, you must rely on the text context rather than the input"
        + " image content. ",
    ),
    (
        "mc2",
        "vision",
        "text context and the image content, you should follow the image content rather than the text context. ",
    ),
    (
        "mc2_prioritize",
        "text",
        "text context and the input image content, prioritize the information from the text context. ",
    ),
    (
        "mc2_original",
        "text",
        "text context and the image content, you should follow the text context rather than the image content. ",
    ),
]


@pytest.mark.parametrize("style, direction, words", MC2_STRINGS)
def test_mc2s_instructions_keep_their_space_before_the_newline(style, direction, words):
    asked = PROMPT.without(Role.IMAGE).before_question(instruction(style, direction))
    assert asked.messages() == [{"role": "user", "content": [{"type": "text", "text": f"c\n{CASE}{words}\nq\no"}]}]


def test_the_space_before_the_newline_reaches_the_model():
    view = fresh_view()
    asked = PROMPT.before_question(instruction("mc2", "vision"))
    bare = PROMPT.before_question(Segment(Role.INSTRUCTION, instruction("mc2", "vision").text.rstrip()))
    ids, trimmed = (view.encode([prompt]).input_ids[0].tolist() for prompt in (asked, bare))
    text, without = view.tokenizer.decode(ids), view.tokenizer.decode(trimmed)
    assert ids != trimmed and "text context. \nq" in text and "text context.\nq" in without
