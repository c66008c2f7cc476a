"""Phi-1.5 and Phi-2."""

from factory.components.language import Llm
from factory.registry import register


@register("llm", "phi")
class Phi(Llm):
    """Phi-1.5 and Phi-2."""

    config_class = "PhiConfig"
