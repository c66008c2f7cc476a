"""Models composed of registered parts (factory.model.compose)."""

from __future__ import annotations

from typing import Any

from torch import nn

from factory.model.compose import ComposedForConditionalGeneration
from factory.model.family import Family
from factory.registry import register


@register("family", "steering_factory_composed")
class Composed(Family):
    """Composed models: any encoder, connector and language model."""

    config_class = "ComposedConfig"
    model_class = "ComposedForConditionalGeneration"
    processor_class = "LlavaProcessor"
    default_k_sigma = 1.0

    def hf_class(self) -> type[nn.Module]:
        return ComposedForConditionalGeneration

    def norm(self, decoder: nn.Module) -> nn.Module:
        return getattr(decoder, "norm", None) or decoder.final_layernorm

    def output_projection(self, block: nn.Module) -> nn.Module:
        """Phi calls it dense."""
        return getattr(block.self_attn, "o_proj", None) or block.self_attn.dense

    def image_texts(self, model: nn.Module, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        return self.repeated(model, processor, [model.config.image_seq_length] * n_images)
