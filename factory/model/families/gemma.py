"""Gemma (arXiv 2403.08295)."""

from __future__ import annotations

from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "gemma")
class GemmaText(TextFamily):
    """Gemma 1 without pictures."""

    config_class = "GemmaConfig"
    model_class = "GemmaForCausalLM"
