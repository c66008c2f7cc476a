"""Trainable parameters at the papers' sizes, on the meta device: nothing is allocated."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch

from factory.model.compose import ComposedForConditionalGeneration, composed_config
from factory.model.families.steering_factory_composed import Composed
from factory.model.view import ModelView
from factory.recipe.schema import ComposeSpec
from factory.registry import lookup
from tests.compose import PHI2, SIGLIP

CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
VICUNA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
VICUNA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
SIZES = {
    "phi2": ("siglip", SIGLIP, "phi", PHI2),
    "7b": ("clip", CLIP, "vicuna", VICUNA_7B),
    "13b": ("clip", CLIP, "vicuna", VICUNA_13B),
}


def view(size: str) -> ModelView:
    encoder, pixels, llm, words = SIZES[size]
    node = {
        "vision_encoder": {"type": encoder, "config": pixels},
        "connector": "mlp2x_gelu",
        "llm": {"type": llm, "config": words},
    }
    with torch.device("meta"):
        model = ComposedForConditionalGeneration(composed_config(ComposeSpec.model_validate(node)))
    return ModelView(model, SimpleNamespace(), Composed())


shared = cache(view)


def count(size: str, tuner: str, beside=(), **options) -> dict[str, int]:
    cls = lookup("tuner", tuner)
    tuner = cls(cls.Params(**options))
    if beside or tuner.in_place:  # what is trained in place cannot be taken out again
        tuner.apply(view(size), beside)
        return tuner.counts()
    tuner.apply(shared(size))
    counts = tuner.counts()
    tuner.remove(shared(size))
    return counts


@pytest.mark.parametrize(
    "size, tuner, options, expected",
    [
        ("phi2", "mores", {"rank": 1}, 163_872),
        ("phi2", "mores", {"rank": 2}, 327_744),
        ("phi2", "mores", {"rank": 4}, 655_488),
        ("7b", "mores", {"rank": 1}, 262_176),
        ("13b", "mores", {"rank": 1}, 409_640),
        ("phi2", "mores", {"modality": "both"}, 2 * 163_872),
        ("phi2", "mores", {"share_weights": False}, 2 * 163_872),
        ("phi2", "mores", {"layers": "every:2"}, 163_872 // 2),
        ("phi2", "mores", {"layers": "deep"}, 163_872 // 2),
        ("phi2", "lora", {"rank": 1}, 1_474_560),
        ("phi2", "lora", {"rank": 128}, 188_743_680),
        ("7b", "lora", {"rank": 128}, 319_815_680),
        ("13b", "lora", {"rank": 128}, 500_695_040),
        ("phi2", "ia3", {}, 491_520),
        ("7b", "ia3", {}, 614_400),
        ("13b", "ia3", {}, 962_560),
        ("phi2", "adapter", {"bottleneck": 256}, 83_886_080),
        ("7b", "adapter", {"bottleneck": 256}, 201_326_592),
        ("13b", "adapter", {"bottleneck": 256}, 314_572_800),
        ("phi2", "oft", {"blocks": 16}, 19_537_920),
        ("phi2", "full", {}, 2_779_683_840),
    ],
)
def test_counts_are_the_papers(size, tuner, options, expected):
    assert count(size, tuner, **options) == {"tuner": expected, "beside": 0}


@pytest.mark.parametrize("tuner", ["mores", "lora", "full"])
def test_the_connector_is_counted_beside(tuner):
    alone, both = count("phi2", tuner), count("phi2", tuner, ("connector",))
    assert both == {"tuner": alone["tuner"], "beside": 9_507_840}


def test_lora_stays_out_of_the_vision_tower():
    cls, large = lookup("tuner", "lora"), view("7b")
    tower = {name for name, _ in large.model.named_modules() if "vision_tower" in name and name.endswith("q_proj")}
    names = cls(cls.Params(rank=1)).apply(large)
    assert len(tower) == 24 and len(names) == 2 * 7 * 32
    assert all(name.startswith("model.language_model.layers.") for name in names)
