"""Models composed of registered parts (factory.model.compose)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from factory.model.compose import ComposedForConditionalGeneration
from factory.model.family import Family
from factory.registry import register


@register("family", "steering_factory_composed")
class Composed(Family):
    """Composed models: any encoder, connector and language model."""

    config_class = "ComposedConfig"
    model_class = "ComposedForConditionalGeneration"
    processor_class = "LlavaProcessor"

    def hf_class(self) -> type[PreTrainedModel]:
        return ComposedForConditionalGeneration

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        decoder = model.get_decoder()
        self.norm_name = next(name for name in ("norm", "final_layernorm") if hasattr(decoder, name))
        self.output_projection_path = next(
            f"self_attn.{name}" for name in ("o_proj", "dense") if hasattr(decoder.layers[0].self_attn, name)
        )
        return decoder

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        return self.repeated(model, processor, [model.config.image_seq_length] * n_images)
