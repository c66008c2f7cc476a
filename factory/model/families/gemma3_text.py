"""Gemma 3 without pictures (arXiv 2503.19786): its 270M and 1B models, and the text models of the larger ones."""

from __future__ import annotations

from factory.model.families.gemma2 import Gemma2Text
from factory.registry import register


@register("family", "gemma3_text")
class Gemma3Text(Gemma2Text):
    """Gemma 3 without pictures."""

    config_class = "Gemma3TextConfig"
    model_class = "Gemma3ForCausalLM"
