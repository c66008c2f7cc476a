"""StableLM 2 and 3B."""

from factory.components.language import Llm
from factory.registry import register


@register("llm", "stablelm")
class StableLM(Llm):
    """StableLM."""

    config_class = "StableLmConfig"
