"""Qwen2 and Qwen2.5, which have one architecture."""

from factory.components.language import Llm
from factory.components.templates import CHATML
from factory.registry import register


@register("llm", "qwen2")
class Qwen2(Llm):
    """Qwen2 and Qwen2.5."""

    config_class = "Qwen2Config"
    template = CHATML
