"""Composed models: every part, saving and loading, steering and tuning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, PhiConfig

from factory.errors import UserError
from factory.model.checks import self_check
from factory.model.compose import ComposedForConditionalGeneration, composed_config
from factory.model.load import fingerprint, load
from factory.model.prefix import at_last
from factory.model.source import find
from factory.recipe import Recipe
from factory.recipe import load as read
from factory.recipe.schema import ModelSpec
from factory.registry import available, lookup
from factory.steer import Steering, Where, steer
from tests.compose import CONNECTORS, ENCODERS, LLMS, PHI2, SIGLIP, VIT, composed, composed_spec, encoder, llm
from tests.contract.cases import close, same_weights
from tests.tiny import conflict_prompts, mixed_prompts, tiny_tokenizer


def images_first_prompts():
    """A composed model's template writes the images of a turn before its texts."""
    return [prompt.images_first() for prompt in mixed_prompts()]


def logits(view, prompts):
    batch = view.encode(prompts)
    with torch.no_grad():
        return at_last(view.model(**batch, position_ids=batch.position_ids).logits, batch.attention_mask)


def test_every_registered_part_is_tried_here():
    assert {e.name for e in available("vision_encoder")} == {*ENCODERS, "mof"}
    assert {e.name for e in available("connector")} == {*CONNECTORS, "identity", "mof_mlp"}
    assert {e.name for e in available("llm")} == set(LLMS)


CASES = [
    *(
        pytest.param(encoder(name), "mlp2x_gelu", llm(), 36 if name == "efficientnet_lite0" else 16, id=name)
        for name in (*ENCODERS, "mof")
    ),
    *(
        pytest.param(encoder(), {"type": name, **options}, llm(), options.get("queries", 16), id=name)
        for name, options in CONNECTORS.items()
    ),
    pytest.param(encoder(), "identity", llm(hidden_size=32), 16, id="identity"),
    pytest.param(encoder("mof"), "mof_mlp", llm(), 32, id="mof_mlp"),
    pytest.param(encoder("mof"), "resampler", llm(), 64, id="mof-resampler"),
    *(pytest.param(encoder(), "linear", llm(name), 16, id=name) for name in LLMS),
]


@pytest.mark.parametrize("vision, connector, text, tokens", CASES)
def test_a_model_of_any_parts_is_understood_and_sees_its_images(vision, connector, text, tokens):
    view = composed(vision, connector, text)
    self_check(view)
    one, two = conflict_prompts(2)
    batch = view.encode([one])
    assert int((batch.input_ids == view.image_token_id).sum()) == tokens
    changed = dict(batch) | {"pixel_values": view.encode([two])["pixel_values"]}
    with torch.no_grad():
        assert not torch.allclose(view.model(**batch).logits[:, -1], view.model(**changed).logits[:, -1])
    assert view.model.generate(**view.encode(images_first_prompts()), max_new_tokens=3, do_sample=False).shape[0] == 4


@pytest.mark.parametrize(
    "vision, connector, text",
    [
        (encoder("mof"), "mof_mlp", llm("phi")),
        (encoder("siglip2"), "resampler", llm("smollm2")),
        (encoder("dinov2"), CONNECTORS["qformer"] | {"type": "qformer"}, llm("gemma")),
    ],
)
def test_it_is_saved_and_loaded_like_any_model(vision, connector, text, tmp_path):
    view = composed(vision, connector, text)
    view.model.save_pretrained(tmp_path)
    view.processor.save_pretrained(tmp_path)
    again = load(ModelSpec(path=str(tmp_path)))
    assert isinstance(again.model, ComposedForConditionalGeneration)
    assert close(logits(again, images_first_prompts()), logits(view, images_first_prompts()))
    assert fingerprint(again) == fingerprint(view) and same_weights(again, view)


def test_a_fresh_process_finds_it(tmp_path):
    view = composed(text=llm("phi"))
    view.model.save_pretrained(tmp_path / "model")
    view.processor.save_pretrained(tmp_path / "model")
    torch.save(logits(view, conflict_prompts(2)), tmp_path / "logits.pt")
    script = f"""
import torch
from factory.model.load import load
from factory.recipe.schema import ModelSpec
from tests.contract.cases import close
from tests.factory.test_compose import logits
from tests.tiny import conflict_prompts
view = load(ModelSpec(path={str(tmp_path / "model")!r}))
assert close(logits(view, conflict_prompts(2)), torch.load({str(tmp_path / "logits.pt")!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_parts_come_from_folders_bit_for_bit(tmp_path):
    torch.manual_seed(3)
    vision = CLIPVisionModel(CLIPVisionConfig(**VIT))
    text = AutoModelForCausalLM.from_config(LlamaConfig(**llm()["config"]))
    vision.save_pretrained(tmp_path / "clip")
    text.save_pretrained(tmp_path / "llama")
    tiny_tokenizer(400).save_pretrained(tmp_path / "llama")
    node = {
        "vision_encoder": {"type": "clip", "source": str(tmp_path / "clip")},
        "connector": "linear",
        "llm": {"type": "llama", "source": str(tmp_path / "llama")},
    }
    view = load(ModelSpec(compose=node))
    for part, source in (
        (view.vision_tower.models[0], vision),
        (view.decoder, text.model),
        (view.unembed, text.lm_head),
    ):
        own, theirs = part.state_dict(), source.state_dict()
        assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)
    assert find(ModelSpec(compose=node)).config.image_seq_length == 16


def test_features_are_the_encoders_own_states():
    view = composed(encoder(layer=-2))
    pixels = view.encode(conflict_prompts(2))["pixel_values"]
    with torch.no_grad():
        states = view.vision_tower.models[0](pixel_values=pixels, output_hidden_states=True).hidden_states
        assert torch.equal(view.vision_tower(pixels)[0], states[-2][:, 1:])


def test_the_second_of_a_pair_sees_pictures_in_its_own_colours():
    view = composed(encoder("mof"), "mof_mlp")
    prompts = conflict_prompts(1)
    first, second = view.vision_tower.encoders
    own = second.image_processor(view.vision_tower.models[1].config)(images=prompts[0].images, return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        _, found = view.vision_tower(view.encode(prompts)["pixel_values"])
        expected = second.features(view.vision_tower.models[1], own)
    assert torch.allclose(found, expected, atol=1e-4) and first.mean != second.mean


def test_phi_keeps_the_bias_of_its_unembedding():
    config = composed_config(
        composed_spec({"type": "siglip", "config": SIGLIP}, "mlp2x_gelu", {"type": "phi", "config": PHI2})
    )
    with torch.device("meta"):
        model = ComposedForConditionalGeneration(config)
    assert (
        sum(p.numel() for p in [*model.model.language_model.parameters(), *model.lm_head.parameters()]) == 2_779_683_840
    )
    assert sum(p.numel() for p in model.model.multi_modal_projector.parameters()) == 9_507_840
    assert config.image_seq_length == 729


@pytest.mark.parametrize("name", ["phi", "gemma", "stablelm"])
def test_it_is_steered_and_tuned_like_any_family(name):
    view = composed(text=llm(name))
    before = logits(view, conflict_prompts(2))
    steerer = lookup("steering", "static")
    v = torch.randn(48, generator=torch.Generator().manual_seed(0))  # a layer norm would take out a constant one
    with steer(view, Steering(steerer(steerer.Params()), {"v": v}, Where(layer=1, role="image"), 2.0)):
        assert (logits(view, conflict_prompts(2)) - before).abs().max() > 1e-3
    for tuner in ("mores", "lora", "ia3", "adapter"):
        cls = lookup("tuner", tuner)
        made = cls(cls.Params())
        made.apply(view)
        assert torch.allclose(logits(view, conflict_prompts(2)), before, atol=1e-5)
        made.remove(view)
    assert torch.equal(logits(view, conflict_prompts(2)), before)


@pytest.mark.parametrize(
    "vision, connector, text, message",
    [
        (encoder(), "identity", llm(), "identity needs"),
        (encoder(), "mof_mlp", llm(), "two encoders"),
        (
            {
                "type": "mof",
                "first": encoder(),
                "second": encoder("siglip2", config={**ENCODERS["siglip2"], "num_patches": 25}),
            },
            "linear",
            llm(),
            "grids agree",
        ),
        (encoder(layer=-7), "linear", llm(), "out of range"),
        ({"type": "clip", "source": "./nowhere"}, "linear", llm(), "not found"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_weights_are_made(vision, connector, text, message):
    with pytest.raises(UserError, match=message):
        composed_config(composed_spec(vision, connector, text))


def test_random_weights_need_a_tokenizer_by_name():
    with pytest.raises(UserError, match="llm.tokenizer"):
        load(ModelSpec(compose=composed_spec()))


def test_a_source_of_another_class_is_refused(tmp_path):
    AutoModelForCausalLM.from_config(PhiConfig(**llm("phi")["config"])).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="PhiConfig, and this type of component needs a LlamaConfig"):
        composed_config(composed_spec(text={"type": "llama", "source": str(tmp_path)}))
    CLIPVisionModel(CLIPVisionConfig(**VIT)).save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="needs a SiglipVisionConfig"):
        composed_config(composed_spec({"type": "siglip", "source": str(tmp_path / "clip")}))


def test_a_recipe_names_the_parts(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\ndata: scenes\nmodel:\n  compose:\n    vision_encoder: {type: clip, config: {image_size: 48,"
        " patch_size: 12}}\n    connector: mlp2x_gelu\n    llm: {type: llama, config: {hidden_size: 48}, tokenizer:"
        " somewhere}\n"
    )
    recipe: Recipe = read(path, [])
    assert recipe.model.compose.connector.type == "mlp2x_gelu"
    path.write_text(path.read_text().replace("mlp2x_gelu", "mlp2x_gel"))
    with pytest.raises(UserError, match="Did you mean mlp2x_gelu"):
        read(path, [])


def test_a_connector_starts_as_it_was_built():
    """Not as transformers would draw it: its image tokens are as long as ``gain`` says."""
    view = composed(
        connector={
            "type": "resampler",
            "queries": 5,
            "depth": 1,
            "heads": 4,
            "width": 24,
            "positions": True,
            "gain": 0.25,
        }
    )
    (tokens, *_), width = (
        view.model.model.get_image_features(view.encode(conflict_prompts(1))["pixel_values"]).pooler_output,
        view.width,
    )
    torch.testing.assert_close(tokens.norm(dim=-1), torch.full((5,), 0.25 * width**0.5), rtol=1e-2, atol=0)
