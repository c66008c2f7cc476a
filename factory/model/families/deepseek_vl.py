"""DeepSeek-VL (arXiv 2403.05525): SigLIP patches through an aligner, one fixed number of tokens per image."""

from __future__ import annotations

from factory.model.family import Family
from factory.registry import register


@register("family", "deepseek_vl")
class DeepseekVL(Family):
    """DeepSeek-VL 1.3B, whose vision encoder is SigLIP alone."""

    config_class = "DeepseekVLConfig"
    model_class = "DeepseekVLForConditionalGeneration"
    processor_class = "DeepseekVLProcessor"
    vision_path = "model.vision_model"
    connector_path = "model.aligner"
