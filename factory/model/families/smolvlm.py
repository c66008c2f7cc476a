"""SmolVLM (arXiv 2504.05299): Idefics3 on a small scale."""

from __future__ import annotations

from factory.model.families.idefics3 import Idefics3
from factory.registry import register


@register("family", "smolvlm")
class SmolVLM(Idefics3):
    """SmolVLM and SmolVLM2."""

    config_class = "SmolVLMConfig"
    model_class = "SmolVLMForConditionalGeneration"
    processor_class = None
