"""Llama 1 to 3, and all that has its architecture: SmolLM2, TinyLlama, Vicuna."""

from __future__ import annotations

from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "llama")
class LlamaText(TextFamily):
    """Llama without pictures."""

    config_class = "LlamaConfig"
    model_class = "LlamaForCausalLM"
