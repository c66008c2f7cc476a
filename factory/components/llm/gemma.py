"""Gemma (2024)."""

from factory.components.language import Llm
from factory.components.templates import GEMMA
from factory.registry import register


@register("llm", "gemma")
class Gemma(Llm):
    """Gemma."""

    config_class = "GemmaConfig"
    template = GEMMA
