"""InternVL (InternVL3, arXiv 2504.10479, in transformers' own layout): images are cut into tiles beside a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from factory.errors import UserError
from factory.model.family import Family
from factory.registry import register


@register("family", "internvl")
class InternVL(Family):
    """InternVL2.5 and InternVL3 as ``InternVLForConditionalGeneration``."""

    config_class = "InternVLConfig"
    model_class = "InternVLForConditionalGeneration"
    bookkeeping = ("num_patches",)

    def limit_pixels(self, processor: Any, low: int | None, high: int | None) -> None:
        """In whole tiles."""
        pixels = processor.image_processor
        tile = pixels.size["height"] * pixels.size["width"]
        least, most = pixels.min_patches if low is None else -(-low // tile), pixels.max_patches
        most = most if high is None else high // tile
        if not 1 <= least <= most:
            raise UserError(
                f"model.max_pixels: a picture takes tiles of {tile:,} pixels, and this leaves {least} to {most} of"
                " them; raise it"
            )
        pixels.min_patches, pixels.max_patches = least, most

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image], per_prompt: Sequence[int] = ()
    ) -> dict[str, Any]:
        return (
            dict(processor.image_processor(images=list(images), crop_to_patches=True, return_tensors="pt"))
            if images
            else {}
        )

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        start, end = processor.tokenizer.start_image_token, processor.tokenizer.end_image_token
        tiles = inputs["num_patches"] if n_images else []
        return [
            start + text + end
            for text in self.repeated(model, processor, [model.config.image_seq_length * int(n) for n in tiles])
        ]
