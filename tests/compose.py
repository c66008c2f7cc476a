"""Small composed models of every registered part, with random weights."""

from __future__ import annotations

from typing import Any

from factory.model.compose import compose
from factory.model.family import frozen
from factory.model.source import family_of
from factory.model.view import ModelView
from factory.recipe.schema import ComposeSpec
from tests.tiny import tiny_tokenizer

# As released: SigLIP so400m and Phi-2.
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
PHI2 = {
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 12,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "clip": VIT,
    "siglip": VIT,
    "dinov2": {**VIT, "mlp_ratio": 2},
    "efficientnet_lite0": {
        "image_size": 48,
        "stem": 8,
        "stages": [[1, 3, 1, 1, 8], [2, 3, 2, 2, 12], [1, 5, 2, 2, 16]],
        "hidden_size": 24,
    },
    "siglip2": {**{k: v for k, v in VIT.items() if k != "image_size"}, "num_patches": 16},
}
TEXT = {
    "vocab_size": 400,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
LLMS = ("llama", "vicuna", "tinyllama", "smollm2", "phi", "qwen2", "qwen3", "gemma", "stablelm", "openelm")
CONNECTORS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"depth": 1},
    "mlp2x_gelu": {},
    "mlp3x_gelu": {},
    "mlp4x_gelu": {},
    "resampler": {"queries": 5, "depth": 1, "heads": 4, "width": 24, "positions": True, "gain": 0.5},
    "qformer": {"queries": 6, "width": 16, "depth": 2, "heads": 4},
}


def encoder(name: str = "clip", **options: Any) -> dict[str, Any]:
    if name == "mof":
        return {"type": "mof", "first": encoder("clip"), "second": encoder("dinov2"), **options}
    return {"type": name, "config": ENCODERS[name], **options}


def llm(name: str = "llama", **sizes: Any) -> dict[str, Any]:
    grown = {
        "num_attention_heads": [2, 4, 4],
        "num_key_value_heads": [1, 2, 2],
        "intermediate_size": [48, 64, 80],
        "head_dim": 12,
    }
    special = {
        "openelm": grown,
        "gemma": {"head_dim": 12},
        "qwen3": {"head_dim": 12},
        "smollm2": {"tie_word_embeddings": True},
        "stablelm": {"num_attention_heads": 3, "num_key_value_heads": 3},
    }.get(name, {})
    return {"type": name, "config": {**TEXT, **special, **sizes}}


def composed_spec(vision: Any = None, connector: Any = "mlp2x_gelu", text: Any = None) -> ComposeSpec:
    return ComposeSpec.model_validate(
        {"vision_encoder": vision or encoder(), "connector": connector, "llm": text or llm()}
    )


def composed(vision: Any = None, connector: Any = "mlp2x_gelu", text: Any = None, seed: int = 0) -> ModelView:
    model, processor = compose(composed_spec(vision, connector, text), seed, tiny_tokenizer(400))
    return ModelView(frozen(model), processor, family_of(model.config))
