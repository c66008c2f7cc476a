"""For which models an artefact is: the same in another precision, packed, under a LoRA that adds nothing; no other
without being asked for, and what differs is said.
"""

from __future__ import annotations

import copy
import json
import re
import warnings

import peft
import pytest
import torch

from factory.errors import UserError
from factory.model.family import frozen
from factory.model.identity import identity_of
from factory.model.load import load
from factory.model.view import ModelView
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.steer import artefact
from tests.contract.cases import Case, steering
from tests.tiny import fresh_view, saved_tiny, tiny_view

STATIC = Case("static")
HALVES = {"float32", "bfloat16", "float16"}


def changed(name: str, factor: float = 1.01) -> ModelView:
    """A tiny view of which one tensor is multiplied."""
    view = fresh_view()
    with torch.no_grad():
        view.model.get_parameter(name).mul_(factor)
    return view


def cast(view: ModelView, dtype: str) -> ModelView:
    return ModelView(frozen(copy.deepcopy(view.model).to(getattr(torch, dtype))), view.processor, view.family)


def made(tmp_path, view) -> str:
    return str(artefact.save(str(tmp_path / "x"), steering(STATIC, 1, 1.5), view))


def refusal(folder, view, strict=True) -> str:
    with pytest.raises(UserError, match="made for another base model") as told:
        artefact.load(folder, view, strict)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("theirs", sorted(HALVES))
@pytest.mark.parametrize("ours", sorted(HALVES))
def test_the_same_model_in_another_precision_is_taken(theirs, ours, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert artefact.load(made(tmp_path, cast(tiny_view(), theirs)), cast(tiny_view(), ours)).strength == 1.5


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_the_same_model_packed_is_taken_either_way(bits, tmp_path):
    folder = saved_tiny(tmp_path / "model")
    plain, packed = load(ModelSpec(path=folder)), load(ModelSpec(path=folder, quantize=bits))
    artefact.load(made(tmp_path, plain), packed)
    artefact.load(made(tmp_path / "packed", packed), plain)
    assert "its weights are others" in refusal(made(tmp_path, changed("lm_head.weight")), packed)


def test_a_fresh_lora_is_no_other_model_and_a_trained_one_is(tmp_path):
    folder, view = made(tmp_path, tiny_view()), fresh_view()
    lora = lookup("tuner", "lora")
    tuner = lora(lora.Params())
    tuner.apply(view)
    artefact.load(folder, view)
    with torch.no_grad():
        next(p for name, p in tuner.own.items() if "lora_B" in name).add_(1e-3)
    assert "it holds a trained part beside its weights (model.language_model.layers.*" in refusal(folder, view)
    with pytest.warns(UserWarning, match="it holds a trained part"):
        artefact.load(folder, view, strict=False)
    tuned = made(tmp_path / "tuned", view)
    artefact.load(tuned, view)
    assert "it has no model.language_model.layers.*" in refusal(tuned, tiny_view(), strict=False)


@pytest.mark.parametrize(
    "trained, config",
    [
        ("embed_tokens.lora_embedding_A", {"target_modules": ["embed_tokens"]}),
        ("lm_head.modules_to_save", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ],
)
def test_what_peft_adds_without_effect_is_no_other_model(trained, config, tmp_path):
    """A LoRA of the embedding, whose first matrix is the one that starts at zero, and a layer's copy to be trained."""
    folder, view = made(tmp_path, tiny_view()), fresh_view()
    peft.get_peft_model(view.model, peft.LoraConfig(**config))
    artefact.load(folder, view)
    with torch.no_grad():
        next(p for name, p in view.model.named_parameters() if trained in name).add_(1e-3)
    assert "made for another base model" in refusal(folder, view)


@pytest.mark.parametrize("dtype", sorted(HALVES))
@pytest.mark.parametrize(
    "name", ["model.language_model.layers.2.mlp.up_proj.weight", "model.language_model.norm.weight"]
)
def test_a_sibling_is_refused_by_what_differs_and_taken_on_request(name, dtype, tmp_path):
    folder, sibling = made(tmp_path, tiny_view()), cast(changed(name), dtype)
    group = name.replace(".2.", ".*.")
    told = refusal(folder, sibling)
    assert told.endswith(f"its weights are others ({group}). strict=False loads it for this model all the same")
    with pytest.warns(UserWarning, match="its weights are others"):
        assert artefact.load(folder, sibling, strict=False).strength == 1.5


def test_a_sibling_that_differs_in_one_value_alone_is_no_other_precision(tmp_path):
    view = fresh_view()
    with torch.no_grad():
        view.model.get_parameter("lm_head.weight").view(-1)[0] += 1
    assert "its weights are others" in refusal(made(tmp_path, tiny_view()), view)


@pytest.mark.parametrize(
    "other, why",
    [
        ({"layers": 2}, r"its sizes are others: .*layers\.\*\.\S+ 2 times 48, not 3 times 48"),
        ({"mlp": 32}, r"its sizes are others: .*mlp\.down_proj\.weight 3 times 48 x 32, not 3 times 48 x 64"),
    ],
)
def test_other_sizes_are_named_and_never_taken(other, why, tmp_path):
    for strict in (True, False):
        told = refusal(made(tmp_path, tiny_view()), tiny_view(**other), strict)
        assert "strict" not in told
        assert re.search(why, told), told


def test_another_architecture_is_named(tmp_path):
    from tests.tiny_families import family_view

    told = refusal(made(tmp_path, family_view("qwen2_vl")), tiny_view(), strict=False)
    assert told.endswith("it is a LlavaForConditionalGeneration, not a Qwen2VLForConditionalGeneration")


def test_another_tokenizer_is_named(tmp_path):
    view, processor = fresh_view(), copy.deepcopy(tiny_view().processor)
    processor.tokenizer.add_tokens(["<extra>"])
    view.processor = processor
    with torch.no_grad():
        view.model.get_parameter("lm_head.weight").view(-1)[0] += 1
    assert "its tokenizer has other words" in refusal(made(tmp_path, tiny_view()), view)


def test_artefacts_of_earlier_versions_still_load(tmp_path):
    folder = made(tmp_path, tiny_view())
    path = tmp_path / "x" / artefact.MANIFEST
    content = json.loads(path.read_text())
    base = {key: content["base_model"][key] for key in ("class", "fingerprint")}
    old = {key: value for key, value in content.items() if key != "sha256"} | {"base_model": base}
    path.write_text(json.dumps(old))
    assert artefact.load(folder, tiny_view()).strength == 1.5
    assert "of an earlier version, tells no more" in refusal(folder, cast(tiny_view(), "bfloat16"))
    with pytest.warns(UserWarning):
        artefact.load(folder, cast(tiny_view(), "bfloat16"), strict=False)


def test_what_a_manifest_says_of_a_model_stays_small():
    assert len(identity_of(tiny_view()).model_dump_json()) < 20_000
