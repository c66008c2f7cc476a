"""Mistral Small 3.1 and later (``Mistral3ForConditionalGeneration``): Pixtral's vision tower at a picture's own size,
each square of patches merged into one token; each row of tokens is ended in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from factory.model.family import Family, longest_edge
from factory.registry import register

ROW_END, IMAGE_END = "[IMG_BREAK]", "[IMG_END]"


class RowsOfPatches(Family):
    """A family whose pictures become rows of tokens with an end after each: Pixtral's way, with or without merging.

    transformers' own processor of these models needs torchvision, so its parts are used by themselves; how many pixels
    one token stands for is read from the model's configuration.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        """Side in pixels of the square of the picture that becomes one token."""

    def limit_pixels(self, processor: Any, low: int | None, high: int | None) -> None:
        longest_edge(processor, low, high)

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image], per_prompt: Sequence[int] = ()
    ) -> dict[str, Any]:
        if not images:
            return {}
        square = {"height": self.pixels, "width": self.pixels}
        return dict(processor.image_processor(images=list(images), patch_size=square, return_tensors="pt"))

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        token = self.image_token(model, processor)
        sizes = inputs["image_sizes"] if n_images else []
        grids = [(int(height) // self.pixels, int(width) // self.pixels) for height, width in sizes]
        return [ROW_END.join([token * columns] * rows) + IMAGE_END for rows, columns in grids]

    def image_grid(self, inputs: dict[str, Tensor], tokens: int) -> tuple[int, int] | None:
        if len(inputs["image_sizes"]) != 1:
            return None
        height, width = inputs["image_sizes"][0].tolist()
        return height // self.pixels, width // self.pixels


@register("family", "mistral3")
class Mistral3(RowsOfPatches):
    """Mistral Small 3.1, 3.2 and Ministral 3."""

    config_class = "Mistral3Config"
    model_class = "Mistral3ForConditionalGeneration"

    @classmethod
    def of(cls, config: Any) -> Mistral3 | None:
        if cls.config_class != type(config).__name__:
            return None
        return cls(config.vision_config.patch_size * config.spatial_merge_size)
