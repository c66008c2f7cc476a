"""Roles, letters and answers with tokenizers and templates as released models have them."""

from __future__ import annotations

import pytest
import torch

from eval_suite.scenes.world import TASKS, SceneSpec, scene
from factory.bench import Bench
from factory.data.prompt import Prompt, Role, Segment
from factory.model.checks import self_check
from factory.model.prefix import decode_texts
from factory.registry import lookup
from tests.factory.test_encode import IMAGE, TRICKY
from tests.replicas import llama_tokenizer, llava_on_llama
from tests.tiny import conflict_prompts


def test_the_tokenizer_marks_words_and_falls_back_to_bytes():
    tokens = llama_tokenizer()
    pieces = tokens.convert_ids_to_tokens(tokens("the ball 球")["input_ids"])
    assert pieces[0] == "<s>" and pieces[1].startswith("▁") and "<0xE7>" in pieces


def test_a_llava_with_it_checks_itself():
    self_check(llava_on_llama())


@pytest.mark.parametrize("text", [t for t in TRICKY if t.strip()])
def test_every_word_keeps_its_role(text):
    view = llava_on_llama()
    prompt = Prompt(
        (
            IMAGE,
            Segment(Role.CONTEXT, "Text context: a ball."),
            Segment(Role.QUESTION, text),
            Segment(Role.OPTIONS, "A. red\nB. blue"),
        )
    )
    (e,) = view.tokens([prompt], view.images_of([prompt])[1])
    for segment in prompt.segments[1:]:
        ids = [i for i, role in zip(e.ids, e.roles, strict=True) if role == segment.role]
        kept = "".join(view.tokenizer.decode(ids).split())
        assert kept.startswith("".join(segment.text.split())[:1]) or segment.text[0].isspace()
        assert kept == "".join(segment.text.split())
    assert e.roles.count(Role.IMAGE) == e.ids.count(view.image_token_id) == 16
    assert e.roles[0] == Role.TEMPLATE and e.ids.count(view.tokenizer.bos_token_id) == 1
    assert e.text.endswith("ASSISTANT:") and "USER: <image>" in e.text


def test_a_shown_example_ends_its_turn_and_the_second_image_stays_in_its_own():
    view = llava_on_llama()
    one, two = conflict_prompts(2)
    shown = Prompt((*one.append(Segment(Role.ANSWER, "B")).segments, *two.segments))
    (e,) = view.tokens([shown], view.images_of([shown])[1])
    assert e.text.count("USER: <image>") == e.text.count("ASSISTANT:") == 2
    assert view.tokenizer.decode([i for i, r in zip(e.ids, e.roles, strict=True) if r == Role.ANSWER]).strip() == "B"


def test_letters_of_a_forced_choice_are_the_tokens_that_begin_an_answer():
    view = llava_on_llama()
    mc2 = lookup("benchmark", "mc2")
    bench = Bench(view, mc2(mc2.Params(scoring="loglik_forced")), 1, 16)
    pieces = view.tokenizer.convert_ids_to_tokens(bench.among.tolist())
    assert {p.lstrip("▁") for p in pieces} == {"A", "B"} and {"▁A", "▁B"} <= set(pieces)


def test_answers_are_read_without_their_mark():
    view = llava_on_llama()
    sample = scene(SceneSpec(TASKS[0], "test", 0, 0, 0))
    ids = view.tokenizer(sample.answer_vision, add_special_tokens=False)["input_ids"]
    assert decode_texts(view, torch.tensor([[*ids, view.tokenizer.eos_token_id]])) == [sample.answer_vision]
