"""SmolLM2 (Ben Allal et al., 2025)."""

from factory.components.language import Llm
from factory.components.templates import CHATML
from factory.registry import register


@register("llm", "smollm2")
class SmolLM2(Llm):
    """SmolLM2, in its chat format."""

    config_class = "LlamaConfig"
    template = CHATML
