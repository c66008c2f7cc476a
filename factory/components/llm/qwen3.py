"""Qwen3."""

from factory.components.language import Llm
from factory.components.templates import CHATML
from factory.registry import register


@register("llm", "qwen3")
class Qwen3(Llm):
    """Qwen3."""

    config_class = "Qwen3Config"
    template = CHATML
