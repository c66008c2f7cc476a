"""Finding and loading a model: what is missing or broken is said, in one line, before weights are read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model import checks
from factory.model.checks import self_check
from factory.model.decoding import LEFT_OUT as TABLE
from factory.model.load import device_for, fingerprint, load
from factory.model.source import family_of, find
from factory.model.view import ModelView
from factory.recipe.schema import ModelSpec
from factory.zoo.cards import cards, read_card
from tests.contract.cases import close, fresh_view, logits, same_weights, traces
from tests.tiny import conflict_prompts, tiny_view
from tests.tiny_families import BUILDERS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-llava")
    tiny_view().model.save_pretrained(folder)
    tiny_view().processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def spec(folder, **keys) -> ModelSpec:
    return ModelSpec(path=str(folder), device="cpu", **keys)


def test_a_saved_model_loads_as_the_same_model(saved):
    view, before = load(spec(saved)), tiny_view()
    prompts = conflict_prompts(2)
    assert same_weights(view, before) and close(logits(view, prompts), logits(before, prompts))
    assert fingerprint(view) == fingerprint(before)
    assert (view.depth, view.width, view.heads, view.kv_heads, view.head_dim) == (3, 48, 4, 2, 12)
    assert not view.model.training and not any(p.requires_grad for p in view.model.parameters())


def test_a_generation_ends_at_the_tokenizers_end_token_also_without_generation_settings(folder):
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    view = load(spec(folder))
    end = view.tokenizer.eos_token_id
    assert view.end_ids[0] == end and end in view.model.generation_config.eos_token_id


LEFT_OUT = [
    ({"repetition_penalty": 1.05}, "repetition_penalty of 1.05"),
    ({"bad_words_ids": [[49190], [7]]}, "bad_words_ids of 2 entries"),
    ({"suppress_tokens": [3]}, "suppress_tokens of [3]"),
    ({"begin_suppress_tokens": [3]}, "begin_suppress_tokens of [3]"),
    ({"forced_bos_token_id": 0}, "forced_bos_token_id of 0"),
    ({"forced_eos_token_id": 2}, "forced_eos_token_id of 2"),
    ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size of 3"),
    ({"sequence_bias": [[[5], -10.0]]}, "sequence_bias of [[[5], -10.0]]"),
    ({"min_length": 5}, "min_length of 5"),
    ({"min_new_tokens": 5}, "min_new_tokens of 5"),
    ({"exponential_decay_length_penalty": [5, 1.1]}, "exponential_decay_length_penalty of 2 entries"),
    ({"num_beams": 4}, "num_beams of 4"),
    ({"stop_strings": "END"}, "stop_strings of END"),
    ({"repetition_penalty": 1.0, "num_beams": 1, "min_length": 0, "bad_words_ids": [], "guidance_scale": None}, None),
    ({"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.001, "eos_token_id": [1, 2]}, None),
    ({}, None),
]


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(("settings", "said"), LEFT_OUT)
def test_what_our_decoding_leaves_out_of_a_models_own_is_told(folder, settings, said, name):
    (folder / "generation_config.json").unlink()
    known = json.loads((folder / name).read_text()) if name == "config.json" else {}
    (folder / name).write_text(json.dumps(known | settings))
    notes = find(ModelSpec(path=str(folder))).notes
    whole = f"model: the {said} in its {name} is left out: answers are plainly greedy"
    assert [whole in note for note in notes] == [True] if said else notes == ()


def is_plain(name: str, value: Any) -> bool:
    """Whether transformers makes no processor of logits of a setting, or does not take the value at all."""
    try:
        config = GenerationConfig(do_sample=False, **{name: value})
        made = tiny_view().model._get_logits_processor(config, 4, torch.ones(1, 4, dtype=torch.long), None, [])
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError):
        return True
    return not [p for p in made if type(p).__name__ not in ("InfNanRemoveLogitsProcessor", "LogitNormalization")]


def test_every_setting_that_transformers_makes_a_processor_of_is_in_the_table():
    """The settings of ``GenerationConfig`` that change greedy logits, found by trying values on each of them."""
    values = (0, 3, 1.5, [3], [[3]], [[[3], 1.0]], [5, 1.1])
    changing = {name for name in GenerationConfig().to_dict() if not all(is_plain(name, v) for v in values)}
    assert len(changing) > 8 and changing <= set(TABLE), changing - set(TABLE)


def test_finding_reads_no_weights(saved):
    source = find(spec(saved))
    assert source.family.name == "llava" and source.card is None
    assert source.bytes == (saved / "model.safetensors").stat().st_size


def test_another_precision_is_another_model(saved):
    view = load(spec(saved, dtype="bfloat16"))
    assert view.dtype == torch.bfloat16 and fingerprint(view) != fingerprint(tiny_view())


def test_one_changed_weight_is_another_model():
    view = fresh_view()
    before = fingerprint(view)
    assert before == fingerprint(tiny_view()) != fingerprint(tiny_view(seed=1))
    with torch.no_grad():
        view.layers[0].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(view) != before


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: shutil.rmtree(f), r"not found.*model\.path=FOLDER"),
        (lambda f: (f / "config.json").unlink(), r"no config\.json"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read"),
        (lambda f: (f / "generation_config.json").write_text("{"), r"generation_config\.json: cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-5]),
            r"model\.safetensors: damaged or cut short",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"123"), "damaged or cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "damaged or cut short"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
            r"model-1\.safetensors is missing",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load(spec(folder))
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_model_of_no_known_family_is_refused_by_name(folder):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    )
    with pytest.raises(UserError, match=r"no family for T5Config.*t5.*llava"):
        find(spec(folder))


def test_zoo_cards_are_sound_and_near_names_are_suggested():
    assert "tiny" in cards() and all(read_card(name).name == name for name in cards())
    with pytest.raises(UserError, match="no model 'tinny' in the zoo.*Did you mean tiny"):
        find(ModelSpec(zoo="tinny"))


@pytest.mark.parametrize("name", ["cuda:99", "tpu7", "nothing"])
def test_a_device_this_machine_lacks_is_refused(name):
    with pytest.raises(UserError, match=f"'{name}' is not on this machine"):
        device_for(name)


def test_the_self_check_passes_and_leaves_nothing():
    view = tiny_view()
    view.encode(conflict_prompts(1))
    before = traces(view)
    self_check(view)
    assert traces(view) == before


def test_the_self_check_refuses_a_model_that_it_does_not_understand(monkeypatch):
    view = fresh_view()
    self_check(view)
    monkeypatch.setattr(type(view), "norm", property(lambda self: self.layers[0].input_layernorm))
    with torch.no_grad():
        view.layers[0].input_layernorm.weight.mul_(3)
    with pytest.raises(UserError, match="LlavaForConditionalGeneration.*family 'llava'.*output norm"):
        self_check(view)


def test_the_self_check_notices_wrong_positions(monkeypatch):
    view = fresh_view()
    monkeypatch.setattr(
        type(view.family),
        "position_ids",
        lambda self, model, ids, mask, inputs: (mask.long().cumsum(-1) * 2).clamp_min(0),
    )
    with pytest.raises(UserError, match="extending its KV cache"):
        self_check(view)


def test_the_self_check_notices_misplaced_image_tokens(monkeypatch):
    view = fresh_view()
    render = checks.ModelView.tokens

    def misplaced(self, prompts, counts):
        return [
            replace(e, roles=[Role.CONTEXT if r == Role.IMAGE else r for r in e.roles])
            for e in render(self, prompts, counts)
        ]

    monkeypatch.setattr(type(view), "tokens", misplaced)
    with pytest.raises(UserError, match="image tokens do not stand where the roles say"):
        self_check(view)


def test_the_self_check_refuses_blocks_that_cannot_be_run_by_themselves(monkeypatch):
    view = fresh_view()
    monkeypatch.setattr(checks, "replay", lambda view, layer, call, h, roles, cache: view.norm(h))
    with pytest.raises(UserError, match="blocks above block 1 cannot be run by themselves"):
        self_check(view)


def test_what_a_model_raises_on_a_small_prompt_is_told_in_one_line(monkeypatch):
    view = fresh_view()
    monkeypatch.setattr(
        view.model.model,
        "get_placeholder_mask",
        lambda *_, **__: (_ for _ in ()).throw(ValueError("tokens: 0,\nfeatures: 16")),
    )
    with pytest.raises(
        UserError,
        match="LlavaForConditionalGeneration as seen through family 'llava': a small prompt cannot be run: tokens: 0,;",
    ) as error:
        self_check(view)
    assert "\n" not in str(error.value)


@pytest.fixture
def unknown():
    model, processor = BUILDERS["structural"]()
    return model.eval(), processor


def test_a_model_without_a_family_is_taken_where_it_can_be_proved(unknown):
    model, processor = unknown
    view = ModelView(model, processor, family_of(model.config))
    self_check(view)
    assert (
        view.family.name == "structural"
        and view.layers is model.model.language_model.layers
        and view.norm is model.model.language_model.norm
    )
    assert view.o_proj(1) is view.layers[1].self_attn.o_proj and view.attention(2) is view.layers[2].self_attn
    assert view.vision_tower is model.model.vision_tower and view.connector is model.model.multi_modal_projector


def test_a_model_without_a_family_is_refused_by_name_where_its_blocks_are_not_found(unknown):
    model, processor = unknown
    model.config.text_config.num_hidden_layers = 5
    with pytest.raises(
        UserError, match="VipLlavaForConditionalGeneration: no list of 5 blocks.*needs a family of its own"
    ):
        ModelView(model, processor, family_of(model.config))


def test_blocks_whose_norm_does_not_give_the_logits_are_not_taken_for_the_decoder(unknown):
    model, processor = unknown
    model.register_forward_hook(lambda module, args, out: out.__setitem__("logits", out.logits * 2))
    with pytest.raises(
        UserError,
        match="VipLlavaForConditionalGeneration: no list of 3 blocks with an output norm that gives its logits",
    ):
        ModelView(model, processor, family_of(model.config))
