"""OPT (arXiv 2205.01068): learnt positions. OPT-350M alone norms after each part, which the self-check refuses."""

from __future__ import annotations

from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "opt")
class OPTText(TextFamily):
    """OPT."""

    config_class = "OPTConfig"
    model_class = "OPTForCausalLM"
    norm_name = "final_layer_norm"
    output_projection_path = "self_attn.out_proj"
    mlp_path = "fc2"
