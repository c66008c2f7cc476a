"""Folders in the hub's own form are read as the models that they were made from, whatever the time they were written
at."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.load import load
from factory.model.stored import Tensors, account, held, weight_files
from factory.recipe.schema import ModelSpec
from tests.contract.test_families import PICTURED
from tests.hub_like import CASES, HUB, built, there, write
from tests.tiny import conflict_prompts


@cache
def made(name: str) -> tuple[Any, Any]:
    return built(name)


def test_every_family_of_the_hub_is_tried_here():
    assert set(HUB) == ({*PICTURED, "llava"} - {"structural", "steering_factory_composed"})


@pytest.mark.parametrize("name, era", CASES, ids=map(" ".join, CASES))
def test_a_hubs_folder_is_the_model_that_it_was_made_from(name, era, tmp_path):
    hub, (model, processor) = HUB[name], made(name)
    folder = write(name, era, model, processor, tmp_path)
    files = held(weight_files(folder))
    assert hub.examples[era] in files.shapes and len(weight_files(folder)) == 3
    view = load(ModelSpec(path=str(folder), device="cpu"))
    batch = view.encode(conflict_prompts(1))
    with torch.no_grad():
        assert torch.equal(view.model(**batch).logits, model(**batch).logits)
    assert view.image_token_id == hub.ids[hub.named["image_token"]]
    assert {token: view.tokenizer.convert_tokens_to_ids(token) for token in hub.ids} == hub.ids
    assert view.writing.template == (hub.template or view.family.chat_template)
    assert torch.equal(batch.input_ids == view.image_token_id, batch.mask(Role.IMAGE))
    assert hub.ids[hub.ends[1]] in view.end_ids


@pytest.mark.parametrize("name, era", CASES, ids=map(" ".join, CASES))
def test_what_a_hubs_folder_lacks_is_named_as_its_files_name_it(name, era):
    """A tensor of the decoder, one of the connector or the vision tower, and the unembedding where nothing is tied."""
    hub, (model, _) = HUB[name], made(name)
    names = there(hub, era, model)
    whole = Tensors({key: tuple(tensor.shape) for key, tensor in names.items()}, frozenset(), 0)
    account(type(model), model.config, whole, "here")
    lost = [hub.examples[era], min(key for key in names if "vis" in key)]
    for key in lost if hub.tied else [*lost, next(key for key in names if key.endswith("lm_head.weight"))]:
        shapes = {each: shape for each, shape in whole.shapes.items() if each != key}
        with pytest.raises(UserError) as error:
            account(type(model), model.config, replace(whole, shapes=shapes), "here")
        assert f"1 tensor is missing ({key})" in str(error.value)
