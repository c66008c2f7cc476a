"""Which tokens are the answer: everything after the generation prompt, through the end token.

The right ids and labels come from a plain rule, written by hand for each template: the text that a generation sees and
continues is tokenized as a whole, and a token that begins at or after the end of a generation prompt is learnt.
"""

from __future__ import annotations

import copy

import pytest

from factory.components.templates import CHATML
from factory.corpus.labels import IGNORE, labelled
from factory.corpus.source import Sample
from factory.data.prompt import Prompt, Role, Segment
from factory.model.view import ModelView
from tests.answer_layouts import (
    ANSWERS,
    DIFFERENT,
    FAMILIES,
    IMAGES,
    LAYOUTS,
    PICTURE,
    QUESTION,
    TOKENIZERS,
    Layout,
    view_of,
    view_with,
)
from tests.tiny_families import BUILDERS, family_view


def sample_of(turns: list[tuple[str, str]], pictured: bool = True) -> Sample:
    segments = [s for q, a in turns for s in (Segment(Role.QUESTION, q), Segment(Role.ANSWER, a))]
    return Sample("s", Prompt((*[Segment(Role.IMAGE, image=PICTURE)] * pictured, *segments)))


def plain(view: ModelView, layout: Layout, turns: list[tuple[str, str]], image: str) -> tuple[list[int], list[int]]:
    """Ids and labels by the plain rule; ids without labels (an empty list) where a token lies across a border."""
    text, learnt, closed = layout.begin, [], []
    for i, (question, answer) in enumerate(turns):
        text += layout.asked[0] + (image if i == 0 else "") + question + layout.asked[1] + layout.given
        learnt.append((len(text), len(text) + len(layout.parted + answer + layout.end)))
        text += layout.parted + answer + (layout.end if i == len(turns) - 1 else layout.after)
    begins = (view.tokenizer.bos_token or "<s>") in text
    tokens = view.tokenizer(text, add_special_tokens=not begins, return_offsets_mapping=True)
    ids, labels = [], []
    spans = tokens["offset_mapping"]
    for at, (token, (start, end)) in enumerate(zip(tokens["input_ids"], spans, strict=True)):
        inside = [(first, last) for first, last in learnt if first <= start and end <= last and (start < last)]
        across = any(start < border < end for borders in learnt for border in borders)
        if across:
            return ids, []
        ids.append(token)
        labels.append(token if inside else IGNORE)
        following = spans[at + 1][0] if at + 1 < len(spans) else len(text)
        if not layout.end and inside and end == inside[0][1] and following >= end:
            ids.append(view.tokenizer.eos_token_id)
            labels.append(view.tokenizer.eos_token_id)
            closed.append(end)
    if not layout.end and len(closed) != len(turns):
        return ids, []
    return ids, labels


def compared(view: ModelView, layout: Layout, turns: list[tuple[str, str]], written: str) -> bool:
    """Compare a sample's ids and labels with the plain rule's; whether that has any to say."""
    sample = sample_of(turns, view.sees)
    placed, images = layout.image.replace(view.writing.placeholder, written), [written] * view.sees
    example = labelled(view, sample, images)
    ids, labels = plain(view, layout, turns, placed)
    opened = Prompt(sample.prompt.segments[:-1])
    (prompt,) = view.tokens([opened], [images])
    assert example.encoded.ids[: len(prompt.ids)] == prompt.ids, (
        "the sample goes on from the prompt that is generated from"
    )
    learnt = example.labels[len(prompt.ids) :]
    assert learnt == example.encoded.ids[len(prompt.ids) :], "all of what comes after it is learnt"
    assert learnt[-1] in view.end_ids and not set(learnt[:-1]) & set(view.end_ids)
    last = layout.parted + turns[-1][1]
    assert view.tokenizer.decode([*prompt.ids, *learnt[:-1]]) == view.tokenizer.decode(prompt.ids) + last or (
        "�" in view.tokenizer.decode(learnt) or "<unk>" in view.tokenizer.decode(learnt)
    )
    if labels:
        assert example.encoded.ids == ids
        assert example.labels == labels
    return bool(labels)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_and_labels_are_those_of_a_plain_rule(name, kind):
    layout = LAYOUTS[name]
    view = view_with(kind, layout.template)
    written = view.images_of([sample_of([("q", "a")]).prompt])[1][0][0]
    told = 0
    for answer in ANSWERS:
        told += compared(view, layout, [(QUESTION, answer)], written)
        told += compared(view, layout, [(QUESTION, answer), ("and now?", "3"), ("red or blue?", answer)], written)
    assert told >= len(ANSWERS), "most answers are not joined to what is around them"


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_learns_what_a_plain_rule_tells(name):
    view, layout = family_view(name), FAMILIES.get(name)
    if layout is None:
        chat = LAYOUTS["chatml"]
        layout = Layout("", IMAGES[name], chat.asked, chat.given, chat.after, end=chat.end)
    written = view.images_of([sample_of([("q", "a")]).prompt])[1][0][0] if view.sees else ""
    told = 0
    for answer in ANSWERS:
        told += compared(view, layout, [(QUESTION, answer)], written)
        told += compared(view, layout, [(QUESTION, answer), ("and now?", "3"), ("red or blue?", answer)], written)
    assert told >= len(ANSWERS)


@pytest.mark.parametrize("name", DIFFERENT)
def test_an_answer_goes_on_from_its_generation_prompt_where_the_template_writes_it_otherwise(name):
    answer, theirs, ours = DIFFERENT[name]
    view = view_with("byte-level", LAYOUTS[name].template)
    prompt = Prompt((Segment(Role.QUESTION, "q"), Segment(Role.ANSWER, answer)))
    tokens = view.tokenizer
    assert tokens.apply_chat_template(prompt.messages(), chat_template=LAYOUTS[name].template, tokenize=False) == theirs
    assert tokens.decode(labelled(view, Sample("s", prompt), []).encoded.ids).removeprefix("<s>") == ours.removeprefix(
        "<s>"
    )


SPACED = [
    "\nwhat is it?",
    "  what is it? ",
    "what is it?\n\n",
    " \t\nwhat is it?\r\n",
    "what is it?",
    "\u2003wide\u2003",
]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("text", SPACED)
def test_white_space_around_a_text_is_trimmed_where_the_template_trims_it(name, text):
    view = view_with("byte-level", LAYOUTS[name].template)
    for segments in (
        [Segment(Role.QUESTION, text)],
        [Segment(Role.CONTEXT, text), Segment(Role.QUESTION, text)],
        [Segment(Role.IMAGE, image=PICTURE), Segment(Role.CONTEXT, text), Segment(Role.OPTIONS, text)],
    ):
        prompt = Prompt(tuple(segments))
        (encoded,) = view.tokens([prompt], [["<image>"] * len(prompt.images)])
        theirs = view.tokenizer.apply_chat_template(
            prompt.messages(), chat_template=LAYOUTS[name].template, add_generation_prompt=True, tokenize=False
        )
        assert encoded.text == theirs
        assert encoded.ids == view.tokenizer(theirs, add_special_tokens="<s>" not in theirs)["input_ids"]
        for role in {s.role for s in segments} - {Role.IMAGE}:
            said = [encoded.text[a:b] for r, (a, b) in zip(encoded.roles, encoded.offsets, strict=True) if r == role]
            assert "".join(said).strip() == text.strip()


def test_white_space_that_the_template_keeps_is_the_texts_and_its_own_is_not():
    for name, whose in (("chatml", Role.QUESTION), ("gemma_hub", Role.TEMPLATE)):
        view = view_with("byte-level", LAYOUTS[name].template)
        (encoded,) = view.tokens([Prompt((Segment(Role.QUESTION, "\n what?"),))], [[]])
        first = encoded.roles.index(Role.QUESTION)
        assert encoded.text[encoded.offsets[first][0] :].startswith("\n what?" if whose == Role.QUESTION else "what?")


@pytest.mark.parametrize(
    "kind, given, answer, right",
    [
        ("byte-level", "A: ", " red", [" ", "red"]),
        ("byte-level", "A:\n", "\nred", ["\n", "red"]),
        ("metaspace first", "A: ", "red", ["red"]),
        ("metaspace first", "A: ", "3", ["3"]),
        ("llama 2", "A: ", "red", ["red"]),
        ("byte-level that composes", "Ae", "\u0301", ["\u0301"]),
    ],
)
def test_an_answer_never_changes_the_tokens_of_its_prompt(kind, given, answer, right):
    """Where a tokenizer would join the two, generation sees the prompt's own tokens and has to say the rest."""
    template = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
    template += "{{ '|' if m['role'] == 'user' else '' }}{% if m['role'] == 'user' and not loop.last %}GIVEN{% endif %}"
    template += "{% endfor %}{% if add_generation_prompt %}GIVEN{% endif %}"
    view = view_with(kind, template.replace("GIVEN", given))
    prompt = Prompt((Segment(Role.QUESTION, "q"), Segment(Role.ANSWER, answer)))
    example = labelled(view, Sample("s", prompt), [])
    alone = view.tokenizer("q|" + given)["input_ids"]
    assert example.encoded.ids[: len(alone)] == alone and not any(example.encoded.answers[: len(alone)])
    said = example.labels[len(alone) : -1]
    assert view.tokenizer.decode(said) == "".join(right) and example.labels[-1] == view.tokenizer.eos_token_id


def test_an_answer_that_comes_last_is_open_for_a_prompt_and_ended_for_a_sample():
    view = view_with("byte-level", CHATML)
    prompt = Prompt((Segment(Role.QUESTION, "q"), Segment(Role.ANSWER, "The ball is")))
    (begun,), (ended,) = view.tokens([prompt], [[]]), view.tokens([prompt], [[]], ended=True)
    assert begun.text.endswith("assistant\nThe ball is") and ended.text == begun.text + "<|im_end|>"
    assert ended.ids == [*begun.ids, view.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert [r for r, said in zip(ended.roles, ended.answers, strict=True) if said] == [Role.ANSWER] * sum(ended.answers)


def test_the_end_token_of_a_causal_answer_is_no_part_of_a_bidirectional_prompt():
    view = family_view("paligemma")
    sample = sample_of([("q", "red")])
    written = view.images_of([sample.prompt])[1][0]
    example = labelled(view, sample, written)
    types = view.batch([example.encoded], {}, "right").of_tokens["token_type_ids"][0].tolist()
    assert types == [int(label != IGNORE) for label in example.labels]


@pytest.mark.parametrize("settings", [None, "<|im_start|>", ["<|im_start|>", "</s>"], ["</s>"]])
def test_ends_are_the_tokenizers_and_the_generation_settings(settings):
    view = view_of("byte-level")
    model = copy.copy(view.model)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.eos_token_id = settings and view.tokenizer.convert_tokens_to_ids(settings)
    ends = view.tokenizer.convert_ids_to_tokens(ModelView(model, view.processor, view.family).end_ids)
    assert ends == ["</s>", "<|im_start|>"][: 1 + ("<|im_start|>" in (settings or ""))]
