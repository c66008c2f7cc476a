"""TinyLlama (Zhang et al., 2024)."""

from factory.components.language import Llm
from factory.registry import register


@register("llm", "tinyllama")
class TinyLlama(Llm):
    """TinyLlama."""

    config_class = "LlamaConfig"
