"""Small models of random weights of the Qwen-VL models, and of MiniCPM-V, which has the text model of one of them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

from factory.model.parts import Parts
from tests.tiny_parts import CHATML, image_id, text_config, tokenizer, written
from tests.tiny_texts import Built

MARKS = ("image", "slice", "image_id")
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 48,
    "patch_size": 6,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
"""What the vision towers have alike."""


def qwen(model: Any, config: Any, vision: dict[str, Any], kind: str, **keys: Any) -> Built:
    marks = {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    tokens = tokenizer(
        "<|im_start|>", "<|im_end|>", "<|video_pad|>", eos="<|im_end|>", named={"image_token": "<|image_pad|>", **marks}
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    text = text_config(kind, tokens, **{"rope_parameters": rope, **keys})
    ids = {
        name: tokens.convert_tokens_to_ids(f"<|{name.removesuffix('_token_id')}|>")
        for name in ("vision_start_token_id", "vision_end_token_id")
    }
    cfg = config(
        text_config=text,
        vision_config=vision,
        image_token_id=image_id(tokens),
        video_token_id=tokens.convert_tokens_to_ids("<|video_pad|>"),
        tie_word_embeddings=True,
        **ids,
    )
    pixel = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        patch_size=vision["patch_size"],
        merge_size=2,
        temporal_patch_size=2,
    )
    return model(cfg), Parts(pixel, tokens, written(CHATML, IMAGE="<|vision_start|><|image_pad|><|vision_end|>"))


def qwen2_vl() -> Built:
    vision = {
        "depth": 1,
        "embed_dim": 32,
        "hidden_size": 48,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 6,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return qwen(transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig, vision, "qwen2_vl_text")


def qwen2_5_vl() -> Built:
    vision = {
        **TOWER,
        "depth": 2,
        "window_size": 24,
        "fullatt_block_indexes": [1],
    }
    return qwen(
        transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig, vision, "qwen2_5_vl_text"
    )


def qwen3_vl() -> Built:
    vision = {
        **TOWER,
        "depth": 3,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return qwen(
        transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig, vision, "qwen3_vl_text", head_dim=12
    )


HYBRID: dict[str, Any] = {  # running states in the first and the last of three blocks
    "head_dim": 12,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 1],
        "partial_rotary_factor": 0.5,
    },
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def remembering(model: Any) -> Any:
    """A model whose states hold what was read some tokens ago; untrained, most forget it."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            torch.nn.init.uniform_(parameter, -4, -1)
    return model


def qwen3_5() -> Built:
    vision = {
        **TOWER,
        "depth": 2,
        "num_position_embeddings": 64,
    }
    config, model = transformers.Qwen3_5Config, transformers.Qwen3_5ForConditionalGeneration
    built, processor = qwen(model, config, vision, "qwen3_5_text", **HYBRID)
    return remembering(built), processor


def minicpmv4_6() -> Built:
    """Of the pictures that the contract shows some are cut into slices and some are not."""
    marks = {f"{what}_{side}_token": f"<{'/' * (side == 'end')}{what}>" for what in MARKS for side in ("start", "end")}
    tokens = tokenizer(
        *marks.values(), "<|im_start|>", "<|im_end|>", eos="<|im_end|>", named={"image_token": "<|image_pad|>"}
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 6,
    }
    config = transformers.MiniCPMV4_6Config(
        text_config=text_config("qwen3_5_text", tokens, **HYBRID),
        vision_config=vision,
        insert_layer_id=0,
        image_token_id=image_id(tokens),
        tie_word_embeddings=True,
    )
    pixels = MiniCPMV4_6ImageProcessorPil(patch_size=6, scale_resolution=47, max_slice_nums=4)
    model = remembering(transformers.MiniCPMV4_6ForConditionalGeneration(config))
    return model, Parts(pixels, tokens, written(CHATML, IMAGE="<|image_pad|>"))


QWEN = {build.__name__: build for build in (qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5, minicpmv4_6)}
