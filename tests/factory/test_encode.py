"""Token roles: every segment's tokens are its text's, whatever the text, and nobody else's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.encode import pad
from tests.tiny import conflict_prompts, mixed_prompts, no_image, text_first, tiny_view, two_images

IMAGE = Segment(Role.IMAGE, image=Image.new("RGB", (48, 48), "red"))
TRICKY = [
    "ASSISTANT:",
    "USER: ASSISTANT: A",
    "A",
    "",
    " ",
    "  leading",
    "trailing   ",
    "\nline\n\nbreaks\n",
    "naïve café ÅÄÖ",
    "图像 表示 红色",
    "🙂🏳️‍🌈👩‍🔬",
    "tab\tand\r\nreturn",
    "{{ jinja }} {% if x %}",
    "a\u0301 combining",
    "\ue000\ue001 private use",
    "x" * 300,
    "[IMG] <|im_start|> [/INST]",
    "\u200b\ufeff",
    "'\"\\",
]


def decoded(view, ids, roles, role: Role) -> str:
    return view.tokenizer.decode(
        [i for i, r in zip(ids, roles, strict=True) if r == role], clean_up_tokenization_spaces=False
    )


def check(prompt: Prompt) -> None:
    """Every role's tokens decode to the texts of its segments, up to the white space around them."""
    view = tiny_view()
    encoded = view.tokens([prompt], view.images_of([prompt])[1])[0]
    assert len(encoded.ids) == len(encoded.roles)
    for role in {s.role for s in prompt.segments} - {Role.IMAGE}:
        texts = [s.text for s in prompt.segments if s.role == role]
        assert "".join(decoded(view, encoded.ids, encoded.roles, role).split()) == "".join("".join(texts).split())
    assert encoded.roles.count(Role.IMAGE) == 16 * len(prompt.images)
    assert all((i == view.image_token_id) == (r == Role.IMAGE) for i, r in zip(encoded.ids, encoded.roles, strict=True))
    assert encoded.roles[0] == Role.TEMPLATE and Role.PAD not in encoded.roles
    template = decoded(view, encoded.ids, encoded.roles, Role.TEMPLATE)
    turns = 1 + sum(s.role == Role.ANSWER for s in prompt.segments) - prompt.answered
    assert template.count("USER:") == turns and template.count("ASSISTANT:") == turns


@pytest.mark.parametrize("text", TRICKY)
@pytest.mark.parametrize("place", [Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION, Role.ANSWER])
def test_tricky_texts_keep_their_roles(text, place):
    segments = {
        r: Segment(r, "some words") for r in (Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION, Role.ANSWER)
    }
    segments[place] = Segment(place, text)
    check(Prompt((IMAGE, *segments.values())))
    check(Prompt((IMAGE, *segments.values(), Segment(Role.QUESTION, "and now?"))))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from([Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION]), st.text(max_size=20)),
        min_size=1,
        max_size=5,
    )
)
def test_random_texts_keep_their_roles(parts):
    check(Prompt((IMAGE, *(Segment(role, text) for role, text in parts))))


@pytest.mark.parametrize(
    "prompt",
    [
        *mixed_prompts(),
        text_first(conflict_prompts(1)[0]),
        two_images(*conflict_prompts(2)),
        no_image(conflict_prompts(1)[0]),
        conflict_prompts(1)[0].append(Segment(Role.ANSWER, "red")),
        Prompt((*conflict_prompts(1)[0].segments, Segment(Role.ANSWER, "A"), *conflict_prompts(2)[1].segments)),
        Prompt((Segment(Role.SYSTEM, "be brief."), *conflict_prompts(1)[0].segments)),
    ],
)
def test_layouts_keep_their_roles(prompt):
    check(prompt)


def test_roles_stand_in_the_order_of_the_segments():
    view = tiny_view()
    prompt = conflict_prompts(1)[0].append(Segment(Role.INSTRUCTION, "answer from the text."))
    encoded = view.tokens([prompt], [["<image>" * 16]])[0]
    order = [r for i, r in enumerate(encoded.roles) if r != Role.TEMPLATE and (i == 0 or encoded.roles[i - 1] != r)]
    assert order == [Role.IMAGE, Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION]
    assert encoded.roles[-1] == Role.TEMPLATE, "the generation prompt is the template's"


@pytest.mark.parametrize("token", ["<image>", "</s>", "<s>", "<pad>"])
def test_a_text_that_spells_a_special_token_is_refused(token):
    """It would become that token: an image that is not there, or the end of the prompt."""
    prompt = Prompt((IMAGE, Segment(Role.CONTEXT, f"the file says {token} here"), Segment(Role.QUESTION, "so?")))
    with pytest.raises(UserError, match=f"context.*'{token}'.*the file says"):
        tiny_view().encode([prompt])


@pytest.mark.parametrize(
    "template, fault",
    [
        (
            (
                "{% for m in messages %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{%"
                " endfor %}"
            ),
            "drops the image",
        ),
        (
            "{% for m in messages %}{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}{% endfor %}",
            "drops the words",
        ),
        (
            (
                "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text']"
                " + c['text'] }}{% endfor %}{% endfor %}"
            ),
            "repeats",
        ),
        (
            (
                "{% for m in messages | reverse %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else"
                " c['text'] }}{% endfor %}{% endfor %}"
            ),
            "reverses",
        ),
    ],
)
def test_a_template_that_changes_a_segment_is_refused(monkeypatch, template, fault):
    view = tiny_view()
    monkeypatch.setattr(view.processor, "chat_template", template)
    prompt = Prompt((IMAGE, Segment(Role.QUESTION, "q"), Segment(Role.ANSWER, "a"), Segment(Role.QUESTION, "r")))
    with pytest.raises(UserError, match="template drops, repeats or reorders"):
        view.encode([prompt])


IMAGES_FIRST = (
    "{% for m in messages %}{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endfor %}"
)


def test_a_template_that_moves_images_is_refused_where_it_does(monkeypatch):
    view = tiny_view()
    monkeypatch.setattr(view.processor, "chat_template", IMAGES_FIRST)
    a, b = conflict_prompts(2)
    assert view.encode([a]).mask(Role.IMAGE).any()
    for moved in (text_first(a), two_images(a, b)):
        with pytest.raises(UserError, match="puts images before texts; put them first"):
            view.encode([moved])


def test_an_image_is_written_with_what_the_family_puts_around_it():
    view, (prompt,) = tiny_view(), conflict_prompts(1)
    encoded = view.tokens([prompt], [["row 1: <image><image>\n<image>."]])[0]
    found = [(i == view.image_token_id, r) for i, r in zip(encoded.ids, encoded.roles, strict=True)]
    assert encoded.roles.count(Role.IMAGE) == 3 and all(image == (role == Role.IMAGE) for image, role in found)
    assert decoded(view, encoded.ids, encoded.roles, Role.TEMPLATE).startswith("<s>USER: row 1: \n.")


def test_a_processor_without_a_template_is_refused(monkeypatch):
    view = tiny_view()
    monkeypatch.setattr(view.processor, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        view.encode(conflict_prompts(1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_told_from_tokens(side):
    view, prompts = tiny_view(), mixed_prompts()
    batch, width = view.encode(prompts, side), None
    for i, prompt in enumerate(prompts):
        alone = view.encode([prompt])
        n = alone.input_ids.shape[1]
        width = batch.input_ids.shape[1]
        own, rest = (slice(width - n, width), slice(0, width - n)) if side == "left" else (slice(0, n), slice(n, width))
        for name in ("input_ids", "attention_mask", "roles", "position_ids"):
            assert torch.equal(getattr(batch, name)[i, own], getattr(alone, name)[0])
        assert (batch.attention_mask[i, rest] == 0).all() and (batch.roles[i, rest] == Role.PAD).all()
    assert width == max(view.encode([p]).input_ids.shape[1] for p in prompts)


def test_a_batch_holds_what_the_model_takes():
    view = tiny_view()
    batch = view.encode(mixed_prompts())
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"} and len(batch) == 3
    assert batch["pixel_values"].shape == (4, 3, 48, 48), "one, one, two and no image"
    assert set(view.encode([no_image(p) for p in conflict_prompts(2)])) == {"input_ids", "attention_mask"}
    assert torch.equal(batch.mask(Role.IMAGE).sum(-1), torch.tensor([16, 16, 32, 0]))


def test_pad_by_hand():
    assert pad([[1, 2], [3]], 9, "left").tolist() == [[1, 2], [9, 3]]
    assert pad([[1, 2], [3]], 9, "right").tolist() == [[1, 2], [3, 9]]
