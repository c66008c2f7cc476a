"""LLaVA-NeXT (LLaVA-1.6): an image is cut into tiles of the vision tower's size beside a thumbnail; padding is cut off
again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from factory.model.family import Family
from factory.registry import register


@register("family", "llava_next")
class LlavaNext(Family):
    """LLaVA-NeXT."""

    config_class = "LlavaNextConfig"
    model_class = "LlavaNextForConditionalGeneration"
    processor_class = "LlavaNextProcessor"

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        if not n_images:
            return []
        strategy = model.config.vision_feature_select_strategy
        return self.repeated(
            model,
            processor,
            packed(model, inputs["image_sizes"], [True] * n_images, vision_feature_select_strategy=strategy),
        )


def packed(model: PreTrainedModel, sizes: Tensor, tiled: list[bool], **how: Any) -> list[int]:
    """How many features the model packs of images of ``sizes`` [n, 2]: its own packing, run on shapes alone."""
    config = model.config
    side = config.vision_config.image_size
    tokens = (side // config.vision_config.patch_size) ** 2
    tiles = [
        image_size_to_num_patches(size, config.image_grid_pinpoints, side) if t else 1
        for size, t in zip(sizes, tiled, strict=True)
    ]
    features = [torch.empty(n, tokens, 1, device="meta") for n in tiles]
    return [
        len(each)
        for each in model.model.pack_image_features(
            features, sizes, image_newline=torch.empty(1, device="meta"), **how
        )[0]
    ]
