"""Small models of random weights whose pictures keep their shape: rows of tokens, each with an end (Pixtral's way), and
GLM's grids.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from factory.model.parts import Parts
from tests.tiny_parts import TURNS, image_id, text_config, tokenizer, written
from tests.tiny_texts import Built

PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "patch_size": 6,
    "image_size": 48,
}
INSTRUCT = (
    "<s>{% for m in messages %}{{ '[INST]' if m['role'] != 'assistant' }}{% for c in m['content'] %}{{ '[IMG]' if"
    " c['type'] == 'image' else c['text'] }}{% endfor %}{{ '[/INST]' if m['role'] != 'assistant' else '</s>' }}"
    "{% endfor %}"
)


def rows(model: Any, config: Any, kind: str, **keys: Any) -> Built:
    tokens = tokenizer("[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]", bos="<s>", named={"image_token": "[IMG]"})
    cfg = config(
        vision_config=PIXTRAL,
        text_config=text_config(kind, tokens, head_dim=12, sliding_window=None),
        image_token_index=image_id(tokens),
        tie_word_embeddings=True,
        **keys,
    )
    pixels = PixtralImageProcessorPil(size={"longest_edge": 48}, patch_size={"height": 6, "width": 6})
    return model(cfg), Parts(pixels, tokens, INSTRUCT)


def mistral3() -> Built:
    return rows(
        transformers.Mistral3ForConditionalGeneration, transformers.Mistral3Config, "mistral", spatial_merge_size=2
    )


def pixtral() -> Built:
    keys = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "image_seq_length": 1}
    return rows(transformers.LlavaForConditionalGeneration, transformers.LlavaConfig, "mistral", **keys)


def glm(model: Any, config: Any) -> Built:
    marks = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>")
    tokens = tokenizer("<|user|>", "<|assistant|>", *marks, named={"image_token": "<|image|>"}, eos="<|user|>")
    vision = {
        "model_type": "glm4v_vision",
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 48,
        "patch_size": 6,
        "image_size": 24,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5}
    named = ("image_start", "image_end", "video_start", "video_end")
    ids = {f"{name}_token_id": tokens.convert_tokens_to_ids(mark) for name, mark in zip(named, marks, strict=False)}
    cfg = config(
        text_config=text_config("glm4v_text", tokens, rope_parameters=rope, initializer_range=0.1),
        vision_config=vision,
        image_token_id=image_id(tokens),
        video_token_id=tokens.convert_tokens_to_ids("<|video|>"),
        tie_word_embeddings=True,
        **ids,
    )
    pixels = Glm4vImageProcessorPil(
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}, patch_size=6, merge_size=2, temporal_patch_size=2
    )
    template = written(
        TURNS,
        BEGIN="[gMASK]<sop>",
        ASKED="<|user|>\n",
        GIVEN="<|assistant|>\n",
        IMAGE="<|begin_of_image|><|image|><|end_of_image|>",
        END="",
    )
    return model(cfg), Parts(pixels, tokens, template)


def glm4v() -> Built:
    return glm(transformers.Glm4vForConditionalGeneration, transformers.Glm4vConfig)


def glm46v() -> Built:
    return glm(transformers.Glm46VForConditionalGeneration, transformers.Glm46VConfig)


RECENT = {build.__name__: build for build in (mistral3, pixtral, glm4v, glm46v)}
