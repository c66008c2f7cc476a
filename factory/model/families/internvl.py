"""InternVL (InternVL3, arXiv 2504.10479, in transformers' own layout): images are cut into tiles beside a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from factory.model.family import Family
from factory.registry import register


@register("family", "internvl")
class InternVL(Family):
    """InternVL2.5 and InternVL3 as ``InternVLForConditionalGeneration``."""

    config_class = "InternVLConfig"
    model_class = "InternVLForConditionalGeneration"
    bookkeeping = ("num_patches",)

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
