"""Models composed of registered parts (factory.model.compose)."""

from __future__ import annotations

from torch import Tensor, nn

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
        """The linear map from the heads' outputs to the residual stream; Phi calls it dense."""
        return getattr(block.self_attn, "o_proj", None) or block.self_attn.dense

    def image_token_counts(self, model: nn.Module, inputs: dict[str, Tensor], n_images: int) -> list[int]:
        return [model.config.image_seq_length] * n_images
