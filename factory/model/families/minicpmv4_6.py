"""MiniCPM-V 4.6: SigLIP's tower, whose patches are merged sixteen to one, on Qwen3.5's text model; a large picture is
cut into slices beside the whole, and the pictures of a prompt are numbered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from factory.model.family import Family, merged_grid
from factory.registry import register


@register("family", "minicpmv4_6")
class MiniCPMV46(Family):
    """MiniCPM-V 4.6. transformers' own processor of it needs torchvision, so its parts are used by themselves."""

    config_class = "MiniCPMV4_6Config"
    model_class = "MiniCPMV4_6ForConditionalGeneration"
    connector_path = "model.merger"
    columnless = True
    template_options: ClassVar[Mapping[str, Any]] = {"enable_thinking": False}
    bookkeeping = ("grids", "num_patches_per_image", "numbers")

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image], per_prompt: Sequence[int] = ()
    ) -> dict[str, Any]:
        inputs = super().image_inputs(processor, images, per_prompt)
        numbers = [i for n in per_prompt or [1] * len(images) for i in range(n)]
        return {**inputs, "numbers": numbers} if images else {}

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        if not n_images:
            return []
        pixels, token = processor.image_processor, self.image_token(model, processor)
        merged = 4 if pixels.downsample_mode == "4x" else 16
        counts = (inputs["target_sizes"].prod(-1) // merged).tolist()
        ends = [0, *accumulate(inputs["num_patches_per_image"])]
        texts = []
        for number, (first, end), (rows, columns) in zip(
            inputs["numbers"], pairwise(ends), inputs["grids"], strict=True
        ):
            whole, *slices = (token * n for n in counts[first:end])
            text = f"<image_id>{number}</image_id>" if pixels.use_image_id else ""
            lines = ["".join(f"<slice>{s}</slice>" for s in slices[r * columns :][:columns]) for r in range(rows)]
            texts.append(f"{text}<image>{whole}</image>" + "\n".join(lines))
        return texts

    def image_grid(self, inputs: dict[str, Tensor], tokens: int) -> tuple[int, int] | None:
        return merged_grid(inputs["target_sizes"], tokens)
