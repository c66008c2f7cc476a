"""GLM-4.6V Flash: GLM-4.1V's architecture under a name of its own."""

from __future__ import annotations

from factory.model.families.qwen2_vl import Qwen2VL
from factory.registry import register


@register("family", "glm46v")
class Glm46V(Qwen2VL):
    """GLM-4.6V (dense)."""

    config_class = "Glm46VConfig"
    model_class = "Glm46VForConditionalGeneration"
    frames = 2  # as a film of two
