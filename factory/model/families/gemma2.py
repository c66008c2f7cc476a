"""Gemma 2 (arXiv 2408.00118): blocks of sliding and of full attention in turn, capped logits."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from factory.model.masks import by_layer_type
from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "gemma2")
class Gemma2Text(TextFamily):
    """Gemma 2."""

    config_class = "Gemma2Config"
    model_class = "Gemma2ForCausalLM"

    def attention_mask(self, decoder: PreTrainedModel, mask: Tensor, new: int) -> dict[str, Tensor]:
        return by_layer_type(decoder, mask, new)
