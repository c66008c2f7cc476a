"""Labels: every answer and its end token and nothing else, cut without touching an image, for templates of several
makes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from factory.corpus.collate import Collator
from factory.corpus.conversation import Unusable
from factory.corpus.labels import IGNORE, encode_samples, labelled
from factory.corpus.show import show_sample
from factory.corpus.source import Sample
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.files import read_jsonl
from factory.model.view import ModelView
from tests.tiny import tiny_view

PICTURE = Image.new("RGB", (48, 48), "red")
IMAGE = Segment(Role.IMAGE, image=PICTURE)
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else"
    " c['text'] }}{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image'"
    " else c['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GLUED = (
    "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor"
    " %}{% endfor %}"
)


def view_with(template: str | None) -> ModelView:
    view = tiny_view()
    processor = copy.copy(view.processor)
    if template:
        processor.chat_template = template
    return ModelView(view.model, processor, view.family)


def q(text: str) -> Segment:
    return Segment(Role.QUESTION, text)


def a(text: str) -> Segment:
    return Segment(Role.ANSWER, text)


def learnt(view: ModelView, example) -> list[str]:
    """The texts of the runs of labelled tokens."""
    texts, run = [], []
    for label in [*example.labels, IGNORE]:
        if label != IGNORE:
            run.append(label)
        elif run:
            texts.append(view.tokenizer.decode(run))
            run = []
    return texts


def plain(view: ModelView, *segments: Segment):
    prompt = Prompt(segments)
    counts = view.images_of([prompt])[1][0]
    return labelled(view, Sample("s", prompt), counts)


words = st.text(
    st.characters(exclude_categories=("Cs", "Co"), exclude_characters="<|"), min_size=1, max_size=12
).filter(str.strip)


@pytest.mark.parametrize("template", [None, CHATML, NO_END])
@given(turns=st.lists(st.tuples(words, words, st.booleans()), min_size=1, max_size=3))
def test_each_answer_and_one_end_token_after_it_are_learnt(template, turns):
    view = view_with(template)
    segments = [
        s for asked, answer, pictured in turns for s in [IMAGE] * pictured + [q(asked.strip()), a(answer.strip())]
    ]
    example = plain(view, *segments)
    assert [t.strip() for t in learnt(view, example)] == [answer.strip() + "</s>" for _, answer, _ in turns]
    assert all(label in (IGNORE, token) for label, token in zip(example.labels, example.encoded.ids, strict=True))
    assert example.encoded.ids.count(view.image_token_id) == 16 * sum(pictured for *_, pictured in turns)


def test_an_answer_that_is_glued_to_its_prompt_goes_on_after_the_prompts_own_tokens():
    view = view_with(GLUED)
    example = plain(view, q("What colo"), a("r is it"))
    (prompt,) = view.tokens([Prompt((q("What colo"),))], [[]])
    assert example.encoded.ids[: len(prompt.ids)] == prompt.ids and learnt(view, example) == ["r is it</s>"]


def test_a_text_that_spells_a_special_token_is_an_error_with_its_id():
    with pytest.raises(Unusable, match="special token '</s>'"):
        plain(tiny_view(), q("what is </s> ?"), a("an end"))
    with pytest.raises(UserError, match="sample s0: .*special token '</s>'"):
        Collator(tiny_view(), Listed(Prompt((q("what is </s> ?"), a("an end")))), None, None)([0])


def fitted(view: ModelView, limit: int | None, *segments: Segment):
    (example,), images = encode_samples(view, [Sample("s", Prompt(segments))], limit)
    return example, images


def test_cutting_drops_whole_exchanges_with_their_images_first():
    view = tiny_view()
    turns = (IMAGE, q("one?"), a("first"), q("two?"), a("second"), IMAGE, q("three?"), a("third"))
    whole, _ = fitted(view, None, *turns)
    two, _ = fitted(view, None, *turns[:5])
    same, images = fitted(view, len(whole.labels), *turns)
    assert same == whole and len(images["pixel_values"]) == 2
    for limit in (len(whole.labels) - 1, len(two.labels)):
        example, images = fitted(view, limit, *turns)
        assert example == two and len(images["pixel_values"]) == 1, (
            "no image without its tokens, no tokens without their image"
        )


def test_the_only_answer_is_cut_within_but_never_away():
    view = tiny_view()
    turns = (IMAGE, q("one?"), a("a long answer of many words that goes on and on"))
    whole, _ = fitted(view, None, *turns)
    first = next(i for i, label in enumerate(whole.labels) if label != IGNORE)
    example, images = fitted(view, first + 2, *turns)
    assert example.labels == whole.labels[: first + 2] and example.labelled == 2 and len(images["pixel_values"]) == 1
    for limit in (first, 5):
        with pytest.raises(Unusable, match=f"takes {first} tokens before its first answer"):
            fitted(view, limit, *turns)


class Listed:
    """A source of prompts at hand."""

    def __init__(self, *prompts: Prompt) -> None:
        self.prompts = prompts

    def __getitem__(self, i: int) -> Sample:
        return Sample(f"s{i}", self.prompts[i])

    def name(self, i: int) -> str:
        return f"s{i}"


def test_batches_are_padded_right_with_labels_in_place():
    view = tiny_view()
    source = Listed(
        Prompt((IMAGE, q("what?"), a("red"))), Prompt((q("a longer question without an image"), a("blue and green")))
    )
    batch = Collator(view, source, None, None)([1, 0])
    assert (
        set(batch) == {"input_ids", "attention_mask", "pixel_values", "labels", "roles"}
        and len(batch["pixel_values"]) == 1
    )
    assert [view.tokenizer.decode(row[row != IGNORE]).strip() for row in batch["labels"]] == [
        "blue and green</s>",
        "red</s>",
    ]
    assert all(row.tolist() == sorted(row.tolist(), reverse=True) for row in batch["attention_mask"])
    assert ((batch["labels"] == IGNORE) | (batch["labels"] == batch["input_ids"])).all()


def test_a_batch_without_an_image_runs_the_connector_with_gradient_zero():
    view = tiny_view()
    source = Listed(Prompt((q("2+2"), a("4"))))
    batch = Collator(view, source, None, None)([0])
    assert batch["input_ids"].shape[0] == 2 and len(batch["pixel_values"]) == 1 and (batch["labels"][1] == IGNORE).all()
    batch.pop("roles")
    connector = view.connector.requires_grad_(True)
    try:
        view.model(**batch).loss.backward()
        gradients = [p.grad for p in connector.parameters()]
    finally:
        view.connector.requires_grad_(False)
        view.connector.zero_grad()
    assert all(g is not None and not g.any() for g in gradients)
    alone = {k: v[:1] for k, v in batch.items() if k != "pixel_values"}
    assert torch.allclose(view.model(**alone).loss, view.model(**batch).loss, atol=1e-6)


def test_a_sample_found_too_long_is_an_error_or_a_named_row_without_a_label(tmp_path):
    view = tiny_view()
    source = Listed(Prompt((IMAGE, q("what?"), a("red"))), Prompt((q("word " * 60), a("blue"))))
    with pytest.raises(UserError, match="sample s1: takes .* tokens before its first answer"):
        Collator(view, source, 40, None)([0, 1])
    batch = Collator(view, source, 40, tmp_path / "skipped.jsonl")([0, 1])
    assert [int((row != IGNORE).sum()) > 0 for row in batch["labels"]] == [True, False]
    assert [row["sample"] for row in read_jsonl(tmp_path / "skipped.jsonl")] == ["s1"]


def test_a_sample_beyond_the_models_positions_is_left_out_as_one_that_is_too_long(tmp_path):
    view = tiny_view()
    long = "dog " * view.positions
    source = Listed(Prompt((q("what?"), a("red"))), Prompt((q(long), a("blue"))))
    with pytest.raises(UserError, match="^sample s1: a prompt takes [0-9,]+ positions, .*max_skipped=SHARE$"):
        Collator(view, source, None, None)([0, 1])
    batch = Collator(view, source, None, tmp_path / "skipped.jsonl")([0, 1])
    assert [int((row != IGNORE).sum()) > 0 for row in batch["labels"]][:2] == [True, False]
    assert [row["sample"] for row in read_jsonl(tmp_path / "skipped.jsonl")] == ["s1"]


def test_the_view_of_a_sample_tells_roles_and_what_is_learnt(capsys):
    view = tiny_view()
    example = plain(view, IMAGE, q("what color?"), a("red"))
    show_sample(view, "s", example, Console(width=120))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown, "plain when piped"
    assert f"sample s: {len(example.labels)} tokens, {example.labelled} of them learnt" in shown
    lines = {line.split()[2]: line for line in shown.splitlines() if line[:1].isdigit()}
    assert "<image> x 16" in lines["image"] and "yes" not in lines["image"]
    assert "yes" in lines["answer"] and "red" in lines["answer"].replace("|", "")
    show_sample(view, "s", example, Console(force_terminal=True, width=120))
    assert "\x1b[" in capsys.readouterr().out
