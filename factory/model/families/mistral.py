"""Mistral 7B (arXiv 2310.06825) and its kin."""

from __future__ import annotations

from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "mistral")
class MistralText(TextFamily):
    """Mistral without pictures."""

    config_class = "MistralConfig"
    model_class = "MistralForCausalLM"
