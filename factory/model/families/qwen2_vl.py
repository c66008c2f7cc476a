"""Qwen2-VL (arXiv 2409.12191): images at their own resolution, and a rotary embedding of time, height and width
(M-RoPE).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from factory.model.family import Family, edges, merged_grid
from factory.registry import register


@register("family", "qwen2_vl")
class Qwen2VL(Family):
    """Qwen2-VL; the base of the later Qwen-VL families."""

    config_class = "Qwen2VLConfig"
    model_class = "Qwen2VLForConditionalGeneration"
    vision_path = "model.visual"
    connector_path = "model.visual.merger"

    frames = 1
    """How often a picture counts against the processor's budget."""

    def limit_pixels(self, processor: Any, low: int | None, high: int | None) -> None:
        least, most = (None if pixels is None else pixels * self.frames for pixels in (low, high))
        edges(processor, shortest_edge=least, longest_edge=most)

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        merged = processor.image_processor.merge_size**2
        return self.repeated(model, processor, inputs["image_grid_thw"].prod(-1) // merged if n_images else [])

    def image_grid(self, inputs: dict[str, Tensor], tokens: int) -> tuple[int, int] | None:
        return merged_grid(inputs["image_grid_thw"][:, 1:], tokens)

    def token_inputs(self, model: PreTrainedModel, ids: Tensor, roles: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids == self.image_token_id(model)).long()}

    def position_ids(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        grid = inputs.get("image_grid_thw")
        return model.model.get_rope_index(ids, inputs["mm_token_type_ids"], image_grid_thw=grid, attention_mask=mask)[0]
