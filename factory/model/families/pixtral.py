"""Pixtral (arXiv 2410.07073), in transformers a ``LlavaForConditionalGeneration`` with Pixtral's vision tower."""

from __future__ import annotations

from typing import Any

from factory.model.families.mistral3 import RowsOfPatches
from factory.registry import register


@register("family", "pixtral")
class Pixtral(RowsOfPatches):
    """Pixtral 12B."""

    config_class = "LlavaConfig"
    model_class = "LlavaForConditionalGeneration"

    @classmethod
    def of(cls, config: Any) -> Pixtral | None:
        """The family of a LLaVA whose vision tower is Pixtral's."""
        if cls.config_class != type(config).__name__ or config.vision_config.model_type != "pixtral":
            return None
        return cls(config.vision_config.patch_size)
