"""GPT-2 (Radford et al., 2019): learnt positions, and linear maps that keep their weights turned."""

from __future__ import annotations

from transformers import PreTrainedModel

from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "gpt2")
class GPT2Text(TextFamily):
    """GPT-2."""

    config_class = "GPT2Config"
    model_class = "GPT2LMHeadModel"
    layers_name = "h"
    norm_name = "ln_f"
    attention_path = "attn"
    output_projection_path = "attn.c_proj"

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.base_model
