"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115)."""

from __future__ import annotations

from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "qwen2")
class Qwen2Text(TextFamily):
    """Qwen2 and Qwen2.5 without pictures."""

    config_class = "Qwen2Config"
    model_class = "Qwen2ForCausalLM"
