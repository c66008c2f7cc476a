"""Steered however it is run, a model says what a slow loop says that adds the vectors by hand, token by token."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache

from factory.data.prompt import Role, Segment
from factory.errors import UserError
from factory.model.encode import Encoded
from factory.model.prefix import prefill
from factory.model.view import ModelView
from factory.steer import steer
from tests.factory.by_hand import ByHand, bend, near, of
from tests.tiny import conflict_prompts, mixed_prompts, no_image, shown, tiny_view
from tests.tiny_families import BUILDERS, family_view


def calm_view() -> ModelView:
    """One whose own rounding, on another kind of processor too, stays well below the tolerance."""
    return tiny_view(spread=2.5)


WHERES = [
    {},
    {"role": "image", "take": "uniform:3"},
    {"role": "text", "take": "last:4+first:2", "generated": False},
    {"role": "template"},
    {"role": "none"},
]
READS = ["last_prompt", "per_token"]
# Steered or not, transformers 5.17 gives the beams of a prompt of several pictures one another's, and without a cache
# lets PaliGemma's answer be seen by the tokens before it.
AMISS = Version(transformers.__version__) < Version("5.18")
HOW = {
    "a cache": {},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 5},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "an assistant": {},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("where", WHERES, ids=str)
def test_a_generation_is_the_loop_by_hand(where, reads, how):
    view, steering = calm_view(), bend(reads, **where)
    (prompt,) = conflict_prompts(1)
    guessed = how in ("prompt lookup", "an assistant")  # guesses may be image tokens, which no model takes in an answer
    batch, options = of(view, no_image(prompt) if guessed else prompt), dict(HOW[how])
    if how == "an assistant":
        options["assistant_model"] = copy.deepcopy(view.model)
    with torch.no_grad(), steer(view, steering):
        out = view.model.generate(
            **batch,
            **options,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    said = out.sequences[0, batch.input_ids.shape[1] :].tolist()
    right = ByHand(view, steering).logits(batch, said[:-1])
    assert near(torch.cat(out.logits), right)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("where", WHERES, ids=str)
def test_a_given_answer_in_one_forward_is_the_loop_by_hand(where, reads, side):
    view, steering = calm_view(), bend(reads, **where)
    answers = ["A", "the red ball is left of it", "no", "blue"]
    shown = [p.append(Segment(Role.ANSWER, a)) for p, a in zip(mixed_prompts(), answers, strict=True)]
    batch = view.encode(shown, side)
    with torch.no_grad(), steer(view, steering):
        ours = view.model(**batch, position_ids=batch.position_ids).logits.float()
        again = view.logits(prefill(view, batch)[0])
    for row, prompt in enumerate(mixed_prompts()):
        alone = of(view, prompt)
        own = batch.attention_mask[row].bool()
        ids, logits, same = batch.input_ids[row, own].tolist(), ours[row, own], again[row, own]
        width = alone.input_ids.shape[1]
        right = ByHand(view, steering).logits(alone, ids[width:])
        assert len(ids) > width and near(logits[width - 1 :], right) and near(same[width - 1 :], right)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("where", WHERES, ids=str)
def test_a_begun_answer_goes_on_as_by_hand(where, reads, options):
    view, steering = calm_view(), bend(reads, **where)
    prompt = conflict_prompts(1)[0]
    alone, batch = of(view, prompt), of(view, prompt.append(Segment(Role.ANSWER, "It is the red")))
    with torch.no_grad(), steer(view, steering):
        out = view.model.generate(
            **batch, **options, max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True
        )
    width = alone.input_ids.shape[1]
    said = out.sequences[0, width:].tolist()
    assert near(torch.cat(out.logits), ByHand(view, steering).logits(alone, said[:-1])[-4:])


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("where", WHERES, ids=str)
def test_a_given_answer_on_its_prompts_cache_is_the_loop_by_hand(where, reads):
    """Scored in one forward, or begun and gone on with by ``generate``."""
    view, steering = calm_view(), bend(reads, **where)
    prompt = no_image(conflict_prompts(1)[0])
    alone, batch = of(view, prompt), of(view, prompt.append(Segment(Role.ANSWER, "It is the red")))
    width = alone.input_ids.shape[1]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), steer(view, steering):
        cache = view.model(**alone, use_cache=True).past_key_values
        inputs = {"input_ids": batch.columns(width).input_ids, "attention_mask": batch.attention_mask}
        scored = view.model(**inputs, past_key_values=copy.deepcopy(cache)).logits[0]
        out = view.model.generate(**batch, **options, past_key_values=cache)
    said = out.sequences[0, width:].tolist()
    right = ByHand(view, steering).logits(alone, said[:-1])
    assert near(scored, right[1:-3]) and near(torch.cat(out.logits), right[-4:])


def test_rows_that_go_on_with_their_prompts_beside_answers_are_refused():
    view = calm_view()
    short, long = sorted((no_image(p) for p in conflict_prompts(2)), key=lambda p: of(view, p).input_ids.shape[1])
    batch = view.encode([long, short.append(Segment(Role.ANSWER, "red"))], "right")
    first = of(view, short).input_ids.shape[1]
    with torch.no_grad(), steer(view, bend()):
        cache = view.model(**batch.columns(0, first), use_cache=True).past_key_values
        with pytest.raises(UserError, match="cut the batch where every row's prompt has ended"):
            view.model(input_ids=batch.columns(first).input_ids, past_key_values=cache)


@pytest.mark.parametrize("options", ["itself", "its lower blocks"])
def test_a_model_that_is_its_own_assistant_is_the_loop_by_hand(options):
    view, steering = family_view("llama"), bend("per_token", role="context")
    batch = of(view, no_image(conflict_prompts(1)[0]))
    own = {"assistant_model": view.model} if options == "itself" else {"assistant_early_exit": 2}
    asked = {"max_new_tokens": 6, "min_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), steer(view, steering):
        out = view.model.generate(**batch, **own, **asked, do_sample=False)
    said = out.sequences[0, batch.input_ids.shape[1] :].tolist()
    assert near(torch.cat(out.logits), ByHand(view, steering).logits(batch, said[:-1]))


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("where", WHERES, ids=str)
@pytest.mark.parametrize("alone", [False, True])
def test_a_chat_on_a_kept_cache_goes_on_with_a_prompt(where, reads, alone):
    """The second turn is a prompt of its own: given as the whole chat, or as its new tokens alone."""
    view, steering = calm_view(), bend(reads, **where)
    one, two = (no_image(p) for p in conflict_prompts(2))
    first, turn = of(view, one), view.tokens([two], [[]])[0]
    cache = DynamicCache()
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), steer(view, steering):
        said = view.model.generate(**first, **options, past_key_values=cache).sequences[0].tolist()
        width = first.input_ids.shape[1]
        roles = first.roles[0].tolist() + [int(Role.ANSWER)] * 3 + turn.roles
        chat = view.collate([Encoded(said + turn.ids, roles, "")], {})
        inputs = dict(chat)
        if alone:
            past = width + 2
            inputs["input_ids"] = view.collate([Encoded((said + turn.ids)[past:], roles[past:], "")], {}).input_ids
        out = view.model.generate(**inputs, **options, past_key_values=cache)
    more = out.sequences[0, -3:].tolist()
    ids, rest = (said + turn.ids)[width + 2 :], roles[width + 2 :]
    right = ByHand(view, steering).logits(first, said[width:-1], [(ids, rest, more[:-1])])
    assert near(torch.cat(out.logits), right[-3:])


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "use_cache": False}], ids=str)
@pytest.mark.parametrize("reads", READS)
def test_beams_are_scored_as_by_hand(reads, options):
    view, steering = calm_view(), bend(reads)
    prompts = [prompt for prompt in mixed_prompts() if not (AMISS and len(prompt.images) > 1)]
    batch = view.encode(prompts)
    with torch.no_grad(), steer(view, steering):
        out = view.model.generate(
            **batch,
            **options,
            max_new_tokens=4,
            min_new_tokens=4,
            output_scores=True,
            return_dict_in_generate=True,
            length_penalty=0.0,
            eos_token_id=None,
        )
    for row, prompt in enumerate(prompts):
        said = out.sequences[row, batch.input_ids.shape[1] :]
        logp = ByHand(view, steering).logits(of(view, prompt), said[:-1].tolist()).log_softmax(-1)
        assert float(logp.gather(-1, said[:, None]).sum()) == pytest.approx(float(out.sequences_scores[row]), abs=1e-4)


@pytest.mark.parametrize("name", [name for name in BUILDERS if not (AMISS and name == "paligemma")])
def test_every_family_is_steered_without_a_cache_as_with_one(name):
    view = family_view(name)
    batch, found = view.encode(shown(view, conflict_prompts(2))), []
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        with torch.no_grad(), steer(view, bend("per_token")):
            out = view.model.generate(
                **batch,
                **options,
                max_new_tokens=3,
                min_new_tokens=3,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        found.append(torch.cat(out.logits))
    assert near(found[1], found[0]) and near(found[2], found[0])
