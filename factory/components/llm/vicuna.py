"""Vicuna (Chiang et al., 2023), the language model of LLaVA-1.5."""

from factory.components.language import Llm
from factory.registry import register


@register("llm", "vicuna")
class Vicuna(Llm):
    """Vicuna."""

    config_class = "LlamaConfig"
