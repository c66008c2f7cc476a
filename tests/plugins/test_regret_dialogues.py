"""Dialogues of ``diagnostic: regret``: what is asked, how answers are read, states looked at, and units silenced."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval_suite.benchmarks.pressed import Pressed
from eval_suite.scenes.lessons import retraction
from factory.bench import Bench
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.encode import Encoded
from factory.model.view import ModelView
from factory.recipe import loads
from factory.recipe.nodes import read_node
from factory.registry import lookup
from plugins.diagnostics.regret import EVIDENCE
from plugins.diagnostics.regret.dialogues import Dialogue, Reply, act, dialogues, places, sentences, token_at
from plugins.diagnostics.regret.keywords import OURS, Keyword, Keywords
from plugins.diagnostics.regret.speak import (
    down_projection,
    first_answers,
    first_tokens,
    look,
    reply,
    say,
    say_silenced,
    silenced,
)
from tests.anchor import scenes_bench
from tests.contract import cases
from tests.tiny import fresh_view, mixed_prompts, tiny_view

Regret = lookup("diagnostic", "regret")
WORDS = {
    "hint": {d: retraction.HINTS[d][-1] for d in ("vision", "text")},
    "evidence": {d: retraction.ARRIVALS[d][-1] for d in ("vision", "text")},
}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return scenes_bench()[0]


@pytest.fixture(scope="module")
def asked(bench) -> list[Dialogue]:
    return dialogues(bench, scenes_bench()[1][:2], ("hint", "evidence"), ("vision", "text"), WORDS)


def test_dialogues_are_those_that_tiny2_was_taught_in_the_wordings_held_out_for_test(asked):
    assert len(asked) == 2 * 4
    for d in asked:
        wrong = "text" if d.toward == "vision" else "vision"
        taught = retraction.dialogue(d.kind, d.toward, d.sample, d.form, "test", Random(0))
        own = d.second(d.sample.answer_vision if wrong == "vision" else d.sample.answer_text)
        assert own.digest == taught.digest


def test_the_wrong_modality_s_answer_can_be_given(bench, asked):
    for d, (text, ids) in zip(asked, first_answers(bench, asked, True, 4), strict=True):
        assert text == (d.sample.answer_text if d.toward == "vision" else d.sample.answer_vision)
        assert bench.view.tokenizer.decode(list(ids)).strip() == text


def test_evidence_that_is_no_part_of_the_prompt_is_refused_in_one_line():
    inner = read_node("benchmark", {"type": "plain_scenes", "split": "dev", "per_task": 2})
    pressed = Pressed(Pressed.Params(of=inner))
    one = Bench(tiny_view(), pressed, 1, 3)
    with pytest.raises(UserError, match="'pressed' has no text context"):
        dialogues(one, list(pressed.samples("train"))[:1], ("evidence",), ("text",), WORDS)


@pytest.mark.parametrize(
    ("text", "toward", "wanted"),
    [
        ("The image shows red. I apologize, the answer is red", "vision", "back"),
        ("The image shows red. I stay with blue", "vision", "stays"),
        ("The text says blue. You are right, the answer is blue.", "text", "back"),
        ("red", "vision", "back"),
        ("It is blue, as I said! Red is wrong", "vision", "stays"),
        ("I do not know", "vision", "unread"),
        ("", "vision", "unread"),
    ],
)
def test_what_an_answer_does_is_read_from_its_last_sentence_first(bench, text, toward, wanted):
    sample = next(s for s in scenes_bench()[1] if s.task == "color")
    own = replace(sample, answer_vision="red", answer_text="blue")
    assert act(bench, SimpleNamespace(sample=own, form="open", toward=toward), text) == wanted


def test_a_character_s_token_and_sentences(bench):
    tokenizer, text = bench.view.tokenizer, "The image shows red. Sorry, the answer is red"
    ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
    assert sentences(text) == ["The image shows red. ", "Sorry, the answer is red"]
    for character in (0, 4, text.index("Sorry"), len(text) - 1):
        token = token_at(tokenizer, ids, character)
        before, upto = (tokenizer.decode(ids[:n]).lstrip() for n in (token, token + 1))
        assert len(before) <= character < len(upto)


def spoken(bench: Bench, text: str, kind: str = "hint") -> Reply:
    ids = tuple(bench.view.tokenizer(text, add_special_tokens=False)["input_ids"])
    d = SimpleNamespace(kind=kind, toward="vision")
    word = Keywords(OURS).first(text)
    return Reply(
        d, "blue", (1,), text, ids, "back", word, None if word is None else token_at(bench.view.tokenizer, ids, word.at)
    )


def test_an_answer_without_a_word_is_looked_at_where_the_others_have_theirs(bench):
    told = [
        spoken(bench, "The image shows red. Sorry, the answer is red"),
        spoken(bench, "The image shows a green dog. Sorry, the answer is dog"),
        spoken(bench, "The image shows the man. I stay with it"),
        spoken(bench, "red"),
        spoken(bench, "I apologize. It is red", "evidence"),
        spoken(bench, "It is red. And so it is", "evidence"),
    ]
    found = places(bench.view.tokenizer, told)
    text_from = lambda i: bench.view.tokenizer.decode(list(told[i].ids[found[i] :])).strip()
    assert [text_from(i) for i in (0, 1, 2)] == [
        "Sorry, the answer is red",
        "Sorry, the answer is dog",
        "I stay with it",
    ]
    assert found[3] == 0 and found[4] == found[5] == 0


def test_a_reply_knows_its_word_and_where_that_begins(bench, asked):
    text = "The image shows. I was wrong"
    ids = tuple(bench.view.tokenizer(text, add_special_tokens=False)["input_ids"])
    found = reply(bench, asked[0], ("blue", (1,)), (text, ids), Keywords(OURS))
    assert found.keyword == Keyword("i was wrong", "severe", 17) and found.act == "unread"
    assert bench.view.tokenizer.decode(list(ids[found.token :])).strip() == "I was wrong"
    begins = first_tokens(bench.view, ("I was wrong",))
    assert ids[found.token] in begins or ids[found.token + 1] in begins


def run_whole(view: ModelView, prompt: Prompt, answer: list[int], layer: int, units: str, edit: Any = None) -> Any:
    """One row with no cache and no padding: logits [T, V] and a block's units [T, u] of prompt and answer."""
    images, texts = view.images_of([prompt])
    (encoded,) = view.tokens([prompt], texts)
    whole = view.collate([Encoded(encoded.ids + answer, encoded.roles + [int(Role.ANSWER)] * len(answer), "")], images)
    start, seen = len(encoded.ids), []

    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        if edit is not None:
            for unit, value in edit.items():
                x[0, start - 1 :, unit] = value
        seen.append(x[0])
        return x

    if units == "residual":
        handle = view.layers[layer].register_forward_hook(lambda module, args, output: change(output))
    else:
        handle = view.layers[layer].mlp.down_proj.register_forward_pre_hook(lambda module, args: (change(args[0]),))
    with torch.no_grad():
        out = view.core(**whole, use_cache=False)
    handle.remove()
    return view.logits(out.last_hidden_state[0]), seen[0], start


@pytest.mark.parametrize("units", ["residual", "mlp"])
def test_states_and_odds_are_those_of_a_whole_forward_at_the_place_and_before_it(units):
    view, prompts = tiny_view(), mixed_prompts()
    answers, at = [(7, 8, 9, 10), (11, 12), (13, 14, 15), (16,)], [3, 1, 1, 0]
    found = look(view, list(zip(prompts, answers, at, strict=True)), 3, units, [20, 33], 3)
    for i, prompt in enumerate(prompts):
        for layer in range(view.depth):
            logits, seen, start = run_whole(view, prompt, list(answers[i]), layer, units)
            for before in range(4):
                column = start + at[i] - before
                assert torch.allclose(found.states[i, before, layer], seen[column], atol=2e-3)
                p = logits[column].softmax(-1)[[20, 33]].sum()
                assert float(found.odds[i, before]) == pytest.approx(float((p / (1 - p)).log()), abs=1e-2)
    assert found.states.shape[-1] == (view.width if units == "residual" else 64)


@pytest.mark.parametrize("units", ["residual", "mlp"])
def test_silenced_answers_are_those_of_a_model_whose_units_are_set_from_the_last_prompt_token_on(units):
    view, prompts = tiny_view(), mixed_prompts()[:2]
    width = view.width if units == "residual" else 64
    mask = torch.arange(width) < width // 2
    value = torch.linspace(-2, 2, width)
    said = say_silenced(view, prompts, 4, 1, units, {"none": (mask & False, value), "half": (mask, value)})
    for name, edit in (("none", {}), ("half", {i: float(value[i]) for i in range(width // 2)})):
        for row, prompt in enumerate(prompts):
            answer: list[int] = []
            while len(answer) < 4:
                logits, _, _ = run_whole(view, prompt, answer, 1, units, edit)
                answer.append(int(logits[-1].argmax()))
                if answer[-1] in view.end_ids:
                    answer.pop()
                    break
            assert said[name][row][1] == tuple(answer)
    assert [text for text, _ in said["none"]] == [text for text, _ in say(view, prompts, 4, 2)]
    assert said["half"] != said["none"]


def test_silencing_ends_with_its_block_and_a_model_without_an_mlp_is_refused():
    view = fresh_view()
    before = cases.traces(view)
    with pytest.raises(ZeroDivisionError), silenced(view, 0, "mlp", torch.ones(64).bool(), torch.zeros(64)):
        raise ZeroDivisionError
    assert cases.traces(view) == before
    assert down_projection(view, 0) is view.layers[0].mlp.down_proj
    view.layers[0].mlp = torch.nn.Identity()
    with pytest.raises(UserError, match="no last projection; use `units: residual`"):
        down_projection(view, 0)


def test_a_layer_that_the_model_has_not_is_refused_and_so_is_a_method_without_a_strength(bench):
    diagnostic = Regret(Regret.Params(layer=9))
    with pytest.raises(UserError, match="layer 9 is out of range: the model has blocks 0 to 2"):
        diagnostic.on_samples(bench, scenes_bench()[1][:1])
    recipe = "model: {zoo: tiny}\ndata: {type: scenes}\nsteering: [none]\nname: x\n"
    recipe += "diagnostics: [{type: regret, steered: [%s]}]\n"
    loads(recipe % "static")
    for other in ("none", "dose"):
        with pytest.raises(UserError, match="needs methods that add a vector at a given strength"):
            loads(recipe % other)
    with pytest.raises(UserError, match="phrases for each severity"):
        loads(recipe.replace("steered: [%s]", "keywords: {mild: []}"))


def test_a_steered_answer_is_that_of_generation_under_the_same_vector(bench):
    samples = scenes_bench()[1][:2]
    params = Regret.Params(
        kinds=("evidence",),
        first="given",
        steered=(read_node("steering", "static"),),
        strengths=(0.0, 30.0),
        max_new_tokens=4,
    )
    diagnostic = Regret(params)
    diagnostic.acquaint(cases.known(samples))
    rows = [r for r in diagnostic.on_samples(bench, samples) if r["metric"] == "taken_back"]
    text = lambda method, direction, strength: [
        r["text"] for r in rows if (r["method"], r["direction"], r["strength"]) == (method, direction, strength)
    ]
    plain = text("", "", 0.0)
    assert text("static", "vision", 0.0) == plain and text("static", "vision", 30.0) != plain
    one = dialogues(bench, samples, ("evidence",), ("vision",), {"hint": {}, "evidence": EVIDENCE})
    prompts = [d.second(d.sample.answer_text) for d in one]
    assert [t for t, _ in say(bench.view, prompts, 4, 2)] == plain


def test_answers_are_asked_in_batches_as_one_by_one():
    view, prompts = (
        tiny_view(),
        [p.append(Segment(Role.ANSWER, "blue"), Segment(Role.INSTRUCTION, "Look again.")) for p in mixed_prompts()],
    )
    together, alone = say(view, prompts, 5, 3), [say(view, [p], 5, 1)[0] for p in prompts]
    assert together == alone
    assert partial(say, view, prompts, 5, 4)() == together
