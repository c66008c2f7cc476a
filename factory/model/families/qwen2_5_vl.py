"""Qwen2.5-VL (arXiv 2502.13923): Qwen2-VL with window attention in the vision tower."""

from __future__ import annotations

from factory.model.families.qwen2_vl import Qwen2VL
from factory.registry import register


@register("family", "qwen2_5_vl")
class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL."""

    config_class = "Qwen2_5_VLConfig"
    model_class = "Qwen2_5_VLForConditionalGeneration"
