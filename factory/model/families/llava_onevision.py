"""LLaVA-OneVision (arXiv 2408.03326): tiled as LLaVA-NeXT, many tiles shrunk to a limit; images that share a prompt are
not tiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from factory.model.families.llava_next import packed
from factory.model.family import Family
from factory.registry import register


@register("family", "llava_onevision")
class LlavaOnevision(Family):
    """LLaVA-OneVision."""

    config_class = "LlavaOnevisionConfig"
    model_class = "LlavaOnevisionForConditionalGeneration"

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image], per_prompt: Sequence[int] = ()
    ) -> dict[str, Any]:
        left = iter(images)
        groups = [[next(left) for _ in range(n)] for n in per_prompt or [1] * len(images) if n]
        return dict(processor.image_processor(images=groups, return_tensors="pt")) if images else {}

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        if not n_images:
            return []
        tiled = [n == 1 for n in inputs["batch_num_images"].tolist() for _ in range(n)]
        return self.repeated(
            model,
            processor,
            packed(model, inputs["image_sizes"], tiled, vision_aspect_ratio=model.config.vision_aspect_ratio),
        )
