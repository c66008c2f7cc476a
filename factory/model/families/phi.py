"""Phi-1.5 and Phi-2 (arXiv 2309.05463): attention and MLP read the same normed state, side by side."""

from __future__ import annotations

from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "phi")
class PhiText(TextFamily):
    """Phi-1.5 and Phi-2."""

    config_class = "PhiConfig"
    model_class = "PhiForCausalLM"
    norm_name = "final_layernorm"
    output_projection_path = "self_attn.dense"
