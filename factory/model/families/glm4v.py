"""GLM-4.1V (arXiv 2507.01006): images at their own resolution, and a rotary embedding of time, height and width."""

from __future__ import annotations

from factory.model.families.qwen2_vl import Qwen2VL
from factory.registry import register


@register("family", "glm4v")
class Glm4V(Qwen2VL):
    """GLM-4.1V (dense)."""

    config_class = "Glm4vConfig"
    model_class = "Glm4vForConditionalGeneration"
    frames = 2  # as a film of two
