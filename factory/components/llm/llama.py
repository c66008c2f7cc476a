"""Llama 1 to 3, and what was tuned from them to follow USER: and ASSISTANT:, as Vicuna."""

from factory.components.language import Llm
from factory.registry import register


@register("llm", "llama")
class Llama(Llm):
    """Llama and Vicuna."""

    config_class = "LlamaConfig"
