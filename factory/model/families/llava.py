"""LLaVA-1.5 (arXiv 2310.03744): CLIP patches through an MLP, one fixed number of tokens per image."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from factory.model.family import Family
from factory.registry import register


@register("family", "llava")
class Llava(Family):
    """LLaVA-1.5 and other ``LlavaForConditionalGeneration`` models."""

    config_class = "LlavaConfig"
    model_class = "LlavaForConditionalGeneration"
    processor_class = "LlavaProcessor"

    @classmethod
    def of(cls, config: Any) -> Llava | None:
        """The family of a LLaVA with one number of tokens per image; Pixtral's tower gives rows of them."""
        found = cls.config_class == type(config).__name__ and config.vision_config.model_type != "pixtral"
        return cls() if found else None

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        vision = model.config.vision_config
        states = (vision.image_size // vision.patch_size) ** 2 + (not vision.model_type.startswith("siglip"))
        first_is_left_out = model.config.vision_feature_select_strategy == "default"  # CLIP's class token
        return self.repeated(model, processor, [states - first_is_left_out] * n_images)
