"""SigLIP 2 (Tschannen et al., 2025) in its NaFlex form, on square pictures of as many patches as it was trained
with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from factory.components.vision import VisionEncoder
from factory.registry import register


@register("vision_encoder", "siglip2")
class Siglip2(VisionEncoder):
    """SigLIP 2 (NaFlex); its fixed-resolution checkpoints are of type siglip."""

    config_class, model_class = "Siglip2VisionConfig", "Siglip2VisionModel"

    def side(self, config: PreTrainedConfig) -> int:
        return int(config.num_patches**0.5) * config.patch_size

    def features(self, model: Any, pixels: Tensor) -> Tensor:
        p = model.config.patch_size
        n, channels, height, width = pixels.shape
        grid = torch.tensor([[height // p, width // p]], device=pixels.device).expand(n, 2)
        patches = pixels.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 4, 5, 1).reshape(n, -1, p * p * channels)
        seen = torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device)
        out = model(pixel_values=patches, pixel_attention_mask=seen, spatial_shapes=grid, output_hidden_states=True)
        return out.hidden_states[self.params.layer]
