"""Qwen3.5: in three of four blocks a gated delta rule (Gated DeltaNet, arXiv 2412.06464) takes attention's place, and
keeps one running state; pictures as Qwen3-VL, without its DeepStack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from factory.model.families.qwen2_vl import Qwen2VL
from factory.registry import register


@register("family", "qwen3_5")
class Qwen35(Qwen2VL):
    """Qwen3.5 (dense)."""

    config_class = "Qwen3_5Config"
    model_class = "Qwen3_5ForConditionalGeneration"
    columnless = True
    template_options: ClassVar[Mapping[str, Any]] = {"enable_thinking": False}
    """Its template opens a thought unless it is told otherwise, and the first words would then be no answer."""
