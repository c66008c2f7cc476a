"""Training batches: labels on the last answer alone, and the same lessons in the same order for ever."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from factory.data.prompt import Prompt, Role, Segment
from factory.train.scratch.lessons import GROUP, IGNORE, LessonCollator, LessonStream, answer_labels
from factory.train.scratch.trainer import per_row_loss
from tests.tiny import conflict_prompts, tiny_view

EOS = 2
PICTURE = Image.new("RGB", (48, 48), "red")


def obvious_labels(ids: list[int], roles: list[int], eos: int) -> list[int]:
    """Walk back from the end to the last answer; label it and the end token that follows it."""
    labels, i = [IGNORE] * len(ids), len(ids) - 1
    while i >= 0 and roles[i] != Role.ANSWER:
        i -= 1
    if 0 <= i < len(ids) - 1 and ids[i + 1] == eos:
        labels[i + 1] = eos
    while i >= 0 and roles[i] == Role.ANSWER:
        labels[i] = ids[i]
        i -= 1
    return labels


@st.composite
def rows(draw):
    """Turns of words and answers, some of many tokens, ended by eos or not, padded right (or left) with the eos id or
    another.
    """
    turns = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans()), min_size=1, max_size=3))
    ids, roles = [1], [int(Role.TEMPLATE)]
    for words, answer, ended in turns:
        ids += [5] * words + [7 + i for i in range(answer)] + [EOS] * (answer > 0 and ended)
        roles += (
            [int(Role.QUESTION)] * words + [int(Role.ANSWER)] * answer + [int(Role.TEMPLATE)] * (answer > 0 and ended)
        )
    padding, pad_id, left = draw(st.integers(0, 3)), draw(st.sampled_from([0, EOS])), draw(st.booleans())
    if padding and not left and roles[-1] == Role.ANSWER:
        pad_id = 0  # an answer cut off before padding that looks like its end cannot be told from a whole one
    fill, none = [pad_id] * padding, [int(Role.PAD)] * padding
    return (fill + ids, none + roles) if left else (ids + fill, roles + none)


@given(rows())
def test_labels_are_the_last_answer_and_its_end(row):
    ids, roles = row
    assert answer_labels(torch.tensor([ids]), torch.tensor([roles]), EOS)[0].tolist() == obvious_labels(ids, roles, EOS)


def test_labels_of_real_batches_decode_to_the_answers():
    view = tiny_view()
    a, b, c = conflict_prompts(3)
    many = Prompt((*a.segments, Segment(Role.ANSWER, "yes"), *b.segments, Segment(Role.ANSWER, "a blue star")))
    prompts = [many, c.append(Segment(Role.ANSWER, "B")), b]
    batch = LessonCollator(view)(prompts)
    texts = [view.tokenizer.decode(row[row != IGNORE]) for row in batch["labels"]]
    assert texts == [" a blue star</s>", " B</s>", ""]
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist(), reverse=True), (
        "padded right"
    )
    words = [view.tokenizer.decode(row[row != IGNORE]) for row in batch["text_labels"]]
    assert (
        "yes" in words[0]
        and "blue star" not in words[0]
        and "<image>" not in words[0]
        and "<pad>" not in "".join(words)
    )
    assert "ASSISTANT:" in words[2]


def test_a_long_answer_weighs_no_more_than_a_short_one():
    logits = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3, 4], [5, IGNORE, IGNORE, IGNORE]])
    each = -logits.log_softmax(1)
    expected = [(each[0, 1, 0] + each[0, 2, 1] + each[0, 3, 2] + each[0, 4, 3]) / 4, each[1, 5, 0]]
    assert torch.allclose(per_row_loss(logits, labels), torch.stack(expected))
    assert per_row_loss(logits, torch.full((2, 4), IGNORE)).tolist() == [0, 0]


def draw(index: int, batch: int, total: int) -> Prompt:
    """A lesson whose length is drawn from its index."""
    assert index < total
    image = (Segment(Role.IMAGE, image=PICTURE),) if index % 3 == 0 else ()
    return Prompt(
        (*image, Segment(Role.QUESTION, "w" * Random(index).randrange(200)), Segment(Role.ANSWER, str(index)))
    )


def order(lessons: LessonStream, indices) -> list[int]:
    return [int(lessons[i].segments[-1].text) for i in indices]


@pytest.mark.parametrize("batch, steps", [(4, 9), (3, 1), (1, 6), (8, 8)])
def test_every_lesson_is_taken_once_and_batches_are_alike_in_length(batch, steps):
    lessons = LessonStream(draw, batch, steps)
    found = order(lessons, range(len(lessons)))
    assert len(lessons) == batch * steps and sorted(found) == list(range(batch * steps))
    size = batch * GROUP
    for start in range(0, len(found), size):
        assert sorted(found[start : start + size]) == list(range(start, min(start + size, len(found)))), (
            "groups stay in order"
        )


def test_sorting_pays():
    lessons = LessonStream(draw, 8, 4)
    lengths = [len(lessons[i].segments[-2].text) + 150 * len(lessons[i].images) for i in range(32)]
    waste = sum(max(lengths[i : i + 8]) * 8 - sum(lengths[i : i + 8]) for i in range(0, 32, 8))
    plain = [Random(i).randrange(200) + 150 * (i % 3 == 0) for i in range(32)]
    assert waste < 0.6 * sum(max(plain[i : i + 8]) * 8 - sum(plain[i : i + 8]) for i in range(0, 32, 8))


def test_a_resumed_run_sees_the_same_lessons():
    whole = order(LessonStream(draw, 4, 10), range(40))
    assert order(LessonStream(draw, 4, 10), range(17, 40)) == whole[17:]
    assert order(LessonStream(draw, 4, 10), reversed(range(40))) == whole[::-1]
