"""Gemma 3 (arXiv 2503.19786): blocks of sliding and of full attention in turn; the tokens of one image see each
other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from factory.model.family import Family
from factory.model.masks import by_layer_type
from factory.registry import register


@register("family", "gemma3")
class Gemma3(Family):
    """Gemma 3 with images."""

    config_class = "Gemma3Config"
    model_class = "Gemma3ForConditionalGeneration"
    processor_class = "Gemma3Processor"
    bookkeeping = ("num_crops",)
    plain_calls = False

    def placeholder(self, model: PreTrainedModel, processor: Any) -> str:
        return processor.tokenizer.boi_token

    def token_inputs(self, model: PreTrainedModel, ids: Tensor, roles: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (ids == self.image_token_id(model)).long()}

    def attention_mask(self, decoder: PreTrainedModel, mask: Tensor, new: int) -> dict[str, Tensor]:
        return by_layer_type(decoder, mask, new)
