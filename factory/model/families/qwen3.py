"""Qwen3 (arXiv 2505.09388): queries and keys are normed head by head."""

from __future__ import annotations

from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "qwen3")
class Qwen3Text(TextFamily):
    """Qwen3 without pictures (dense)."""

    config_class = "Qwen3Config"
    model_class = "Qwen3ForCausalLM"
