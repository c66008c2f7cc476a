"""How likely given answers are, who follows answers as they are written, and where a prompt looks: slow references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from factory.data.prompt import Role, Segment
from factory.errors import UserError
from factory.instruments.likelihood import likelihoods
from factory.instruments.looks import looks_at_picture
from factory.steer import steer
from factory.steer.sweep import run_cell, run_trunk
from tests.contract.cases import Case, steering
from tests.tiny import conflict_prompts, fresh_view, mixed_prompts, no_image, tiny_view
from tests.tiny_families import family_view

WORDS = ("red square", "blue")


@pytest.mark.parametrize("case", [Case("static"), Case("l2s", (("predict_from", "per_token"),))], ids=str)
def test_an_answers_probability_is_the_product_of_its_tokens(case):
    view, strengths = tiny_view(), (0.0, 1.5, -3.0)
    prompts = [p.append(Segment(Role.ANSWER, words)) for p in conflict_prompts(2, "open") for words in WORDS]
    steered = steering(case, 1, 1.0)
    found = likelihoods(view, prompts, 1, steered, strengths)
    for i, prompt in enumerate(prompts):
        batch = view.encode([prompt])
        said = int((batch.roles == Role.ANSWER).sum())
        for s, strength in enumerate(strengths):
            with torch.no_grad(), steer(view, replace(steered, strength=strength)):
                p = view.model(**batch).logits[0].float().softmax(-1)
            at = range(batch.input_ids.shape[1] - said, batch.input_ids.shape[1])
            expected = torch.stack([p[t - 1, batch.input_ids[0, t]] for t in at]).prod()
            torch.testing.assert_close(found[s, i], expected, rtol=1e-4, atol=1e-9)
    assert found.std(0).min() > 0, "the strengths must make a difference"
    elsewhere = likelihoods(view, prompts, 0, steered, strengths)  # the trunk's block is not the steered one
    torch.testing.assert_close(elsewhere, found, rtol=1e-4, atol=1e-9)
    plain = likelihoods(view, prompts, 1, None, (0.0, 1.0))
    assert torch.equal(plain[0], found[0]) and torch.equal(plain[1], found[0])
    with pytest.raises(UserError, match="each end with one"):
        likelihoods(view, conflict_prompts(1), 1, None, (0.0,))


def test_who_follows_an_answer_hears_each_token_and_may_end_it():
    view, steered, told = tiny_view(), steering(Case("static"), 1, 2.0), []
    trunk = run_trunk(view, view.encode(mixed_prompts()), 1)
    whole = run_cell(view, trunk, steered, 4, heard=lambda tokens: told.append(tokens.clone()))
    assert [each.shape[1] for each in told] == list(range(1, whole.shape[1] + 1))
    assert all(torch.equal(each, whole[:, : each.shape[1]]) for each in told)

    def leave(tokens: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(view, trunk, steered, 4, heard=leave)
    assert not view.steps.blocks
    assert torch.equal(run_cell(view, trunk, steered, 4), whole)


def test_looks_are_the_models_own_attention_steered_or_not():
    view, prompt = fresh_view(), conflict_prompts(1, "open")[0]
    batch = view.encode([prompt])
    image = batch.input_ids[0] == view.image_token_id
    for steered in (None, steering(Case("static"), 1, 3.0)):
        with steer(view, [steered] if steered else []):
            found = looks_at_picture(view, prompt)
            view.model.set_attn_implementation("eager")
            with torch.no_grad():
                attentions = view.model(**batch, output_attentions=True).attentions
            view.model.set_attn_implementation("sdpa")
        own = torch.stack([layer[0, :, -1].mean(0)[image] for layer in attentions])
        torch.testing.assert_close(found.on_tokens, own, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.maps, own.view(view.depth, 4, 4), rtol=1e-4, atol=1e-6)
    assert found.picture.size == (48, 48)
    shown, given = (np.asarray(each).astype(float) for each in (found.picture, prompt.images[0].resize((48, 48))))
    assert np.abs(shown - given).mean() < 4, "the pixels are the picture's again"
    with pytest.raises(UserError, match="the prompt has 0"):
        looks_at_picture(view, no_image(prompt))


@pytest.mark.parametrize("name, square", [("qwen2_vl", False), ("gemma3", True), ("llava_next", None)])
def test_a_grid_lies_on_the_picture_only_where_tokens_do(name, square):
    view, prompt = family_view(name), conflict_prompts(1, "open")[0]
    wide = replace(prompt.segments[0], image=prompt.images[0].resize((96, 48)))
    found = looks_at_picture(view, replace(prompt, segments=(wide, *prompt.segments[1:])))
    if square is None:
        assert found.maps is None
    else:
        _, rows, columns = found.maps.shape
        assert rows * columns == found.on_tokens.shape[1] and (rows == columns) == square
        assert square or columns > rows
