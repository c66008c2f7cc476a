"""Models that read text alone: what a family without a picture side gives, and what it refuses by name."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import factory
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.instruments.branch import Cuts, branch, run_stem, tail_of
from factory.instruments.residual import residuals
from factory.model.encode import Batch
from factory.model.prefix import prefill
from tests.tiny import conflict_prompts, no_image, shown
from tests.tiny_families import family_view
from tests.tiny_texts import TEXTS

PICTURE = Segment(Role.IMAGE, image=Image.new("RGB", (8, 8)))


def asked(name: str) -> tuple:
    view = family_view(name)
    return view, view.encode(shown(view, conflict_prompts(2)), "right")


@pytest.mark.parametrize("name", TEXTS)
def test_a_picture_is_refused_by_the_models_name(name):
    view = family_view(name)
    told = f"{type(view.model).__name__} reads text alone"
    with pytest.raises(UserError, match=f"{told}, and a prompt has a picture"):
        view.encode([Prompt((PICTURE, Segment(Role.QUESTION, "What?")))])
    for part in ("vision_tower", "connector"):
        with pytest.raises(UserError, match=told):
            getattr(view, part)


@pytest.mark.parametrize("name", TEXTS)
def test_heads_and_mlp_add_up_to_the_residual_stream(name):
    """The stream of each block, against the model's own hidden states, and its heads against its attention."""
    view, batch = asked(name)
    at = torch.tensor([[3, 5], [2, 4]])
    if name in ("gemma2", "gemma3_text"):
        with pytest.raises(UserError, match="changes what attention and MLP add"), residuals(view, at):
            prefill(view, batch)
        return
    with residuals(view, at) as found:
        prefill(view, batch)
    whole = view.model(**batch, output_hidden_states=True).hidden_states
    rows = torch.arange(2)[:, None]
    for layer in range(view.depth):
        assert torch.allclose(found.before[layer], whole[layer][rows, at], atol=1e-5)
        bias = getattr(view.o_proj(layer), "bias", None)
        sum_of_heads = found.head_outputs(view, layer).sum(-2) + (0 if bias is None else bias)
        assert torch.allclose(sum_of_heads, found.attention[layer], atol=1e-4)


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "gemma3_text"])
def test_cutting_attention_is_masking_it(name):
    """Edges cut in all layers are the model run with those tokens hidden from the last one by a mask."""
    view = family_view(name)
    short = [Prompt((Segment(Role.CONTEXT, "red"), Segment(Role.QUESTION, "a?")))]
    batch = view.encode(short)
    stem = run_stem(view, batch)
    length = batch.input_ids.shape[1]
    context, last = batch.mask(Role.CONTEXT), torch.arange(length)[None] == length - 1
    tail = tail_of(view, stem, torch.tensor([length - 1]))
    cuts = Cuts(
        last[None], context[None], torch.zeros(1, dtype=torch.long), torch.ones(view.depth, 1, dtype=torch.bool)
    )
    if name == "gemma2":
        with pytest.raises(UserError, match="Gemma2ForCausalLM caps its attention"):
            branch(view, stem, tail, cuts)
        return
    found = branch(view, stem, tail, cuts)[0, 0, -1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[-1] &= ~context[0]
    mask = torch.zeros(1, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        slow = view.decoder(input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.position_ids)
    assert torch.allclose(found, slow.last_hidden_state[0, -1], atol=1e-4)
    uncut = Batch(batch.input_ids, batch.attention_mask, batch.roles, batch.position_ids)
    assert not torch.allclose(found, prefill(view, uncut)[0][0, -1], atol=1e-3)


def test_a_model_without_a_template_is_asked_in_the_plain_one():
    view = family_view("gpt2")
    (encoded,) = view.tokens([Prompt((Segment(Role.CONTEXT, "It is red."), Segment(Role.QUESTION, "Color?")))], [[]])
    assert encoded.text == "Question: It is red.\nColor?\nAnswer:"


@pytest.mark.parametrize("name", TEXTS)
def test_a_vector_fitted_on_prompts_of_ones_own_is_added_as_it_is(name):
    view, prompts = family_view(name), [no_image(prompt) for prompt in conflict_prompts(4)]
    fitted = factory.fit(view, "static", prompts, layer=1)
    plain = factory.states(view, prompts, [1])
    with factory.steered(view, fitted, strength=2.0):
        moved = factory.states(view, prompts, [1])
    v = fitted.state["v"]
    assert float(v.norm()) > 1e-3
    assert torch.allclose((moved - plain)[:, 0], 2.0 * v.expand(4, -1), atol=1e-4 * float(plain.abs().max()))
