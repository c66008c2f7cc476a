"""Idefics3 (arXiv 2408.12637): images in rows and columns of tiles, each named in the prompt, beside the whole
image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import PreTrainedModel

from factory.errors import UserError
from factory.model.family import Family, longest_edge
from factory.registry import register

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"


@register("family", "idefics3")
class Idefics3(Family):
    """Idefics3; its text decoder is ``model.text_model``."""

    config_class = "Idefics3Config"
    model_class = "Idefics3ForConditionalGeneration"
    processor_class: ClassVar[str | None] = "Idefics3Processor"
    vision_path = "model.vision_model"
    connector_path = "model.connector"
    bookkeeping = ("rows", "cols")

    def limit_pixels(self, processor: Any, low: int | None, high: int | None) -> None:
        """In whole tiles."""
        tile = processor.image_processor.max_image_size["longest_edge"]
        side = None if high is None else math.isqrt(high) // tile * tile
        if side == 0:
            raise UserError(f"model.max_pixels: one tile of a picture has {tile**2:,} pixels already; raise it")
        longest_edge(processor, low, side and side**2)

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image], per_prompt: Sequence[int] = ()
    ) -> dict[str, Any]:
        """The model takes a row of tiles for each prompt, and drops tiles that are all zero."""
        if not images:
            return {}
        left, per_prompt = iter(images), per_prompt or [1] * len(images)
        groups = [[next(left) for _ in range(n)] for n in per_prompt if n]
        inputs = dict(processor.image_processor(images=groups, return_row_col_info=True, return_tensors="pt"))
        with_images = torch.tensor(per_prompt) > 0
        for name in inputs.keys() - set(self.bookkeeping):
            of_all = inputs[name].new_zeros(len(per_prompt), *inputs[name].shape[1:])
            of_all[with_images] = inputs[name]
            inputs[name] = of_all
        return inputs

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        (one,) = self.repeated(model, processor, [model.model.image_seq_len])
        rows, columns = (list(chain.from_iterable(inputs[name])) if n_images else [] for name in self.bookkeeping)
        return [_written(one, r, c) for r, c in zip(rows, columns, strict=True)]


def _written(tile: str, rows: int, columns: int) -> str:
    """The tiles row by row, then the whole image; an image that is not cut is the whole image alone."""
    lines = ["".join(f"{AROUND}<row_{r + 1}_col_{c + 1}>{tile}" for c in range(columns)) + "\n" for r in range(rows)]
    return "".join(lines) + ("\n" if lines else "") + AROUND + WHOLE + tile + AROUND
