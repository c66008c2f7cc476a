"""What is public of each repository of a family: ids, eras of names, templates. Sources as in ``tests.hub_like``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from factory.model.parts import Parts
from tests.hub_templates import GLM_TEMPLATE, PIXTRAL_TEMPLATE, QWEN35_TEMPLATE
from tests.tiny_qwen import MARKS

WORDS_FROM = 1000  # ids below are left to special tokens
Names = tuple[tuple[str, str], ...]

# (S) llava, llava_next, llava_onevision, paligemma, gemma3: their towers are CLIP's and SigLIP's own models
LLAVA_OLD: Names = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.", "vision_tower.vision_model."),
    (r"^model\.(multi_modal_projector|image_newline)", r"\1"),
)
LLAVA_NEW: Names = ((r"^model\.vision_tower\.", "model.vision_tower.vision_model."),)  # (C) 4.52 to 4.57
INTERNVL_OLD: Names = (*LLAVA_OLD[:2], (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."))  # (S) its own tower
QWEN_OLD: Names = ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model."))  # (C), (M)
DEEPSEEK: Names = ((r"^model\.vision_model\.", "model.vision_model.vision_model."),)  # (C) 4.54 to 4.57
SAME: Names = ()

CHATML = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}  # (H) generation configurations
QWEN_VL = CHATML | {  # (H) Qwen2.5-VL-7B-Instruct, config.json; pdufour/Qwen2-VL-7B-Instruct-onnx
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
LLAMA2 = {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001}  # (S)
GEMMA = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}  # (H) paligemma-3b-mix-224, config.json


@dataclass(frozen=True)
class Hub:
    """What is public of a family's repository: ``ids`` of special tokens, ``rows`` of its embedding, ``eras`` of names,
    ``examples`` of names that its files have, and the keys of its configuration that name ids."""

    repo: str
    ids: Mapping[str, int]
    rows: int
    ends: tuple[str | None, str, str]  # bos, eos, pad
    template: str | None
    eras: Mapping[str, Names]
    examples: Mapping[str, str]
    dtype: torch.dtype = torch.bfloat16
    tied: bool = False
    named: Mapping[str, str] = field(default_factory=lambda: {"image_token": "<image>"})
    config: Mapping[str, str] = field(default_factory=dict)
    joined: Callable[..., Any] = Parts
    options: Mapping[str, Any] = field(default_factory=dict)
    begins: bool = False  # whether the tokenizer puts the beginning token first by itself


LLAMA_Q, QWEN_Q = "language_model.model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"
NEW_Q = "model.language_model.layers.0.self_attn.q_proj.weight"
LLAVA_ERAS = {"before 4.52": LLAVA_OLD, "since 4.52": LLAVA_NEW}
LLAVA_NAMES = {"before 4.52": LLAMA_Q, "since 4.52": NEW_Q}
SELECTED = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
VISION_MARKS = {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def qwen(repo: str, rows: int, template: str, old: bool) -> Hub:
    eras = ({"before 4.52": QWEN_OLD} if old else {}) | {"since 4.52": SAME}
    return Hub(
        repo,
        QWEN_VL,
        rows,
        (None, "<|im_end|>", "<|endoftext|>"),
        template,
        eras,
        {"before 4.52": QWEN_Q, "since 4.52": NEW_Q},
        named={"image_token": "<|image_pad|>", **VISION_MARKS},
        config=QWEN_IDS,
    )


def rows(repo: str) -> Hub:  # (C) the image token's id; (M) the others, and the names of tensors
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[IMG]": 10, "<pad>": 11}
    return Hub(
        repo,
        ids | {"[IMG_BREAK]": 12, "[IMG_END]": 13},
        131072,
        ("<s>", "</s>", "<pad>"),
        PIXTRAL_TEMPLATE,
        {"before 4.52": INTERNVL_OLD, "since 4.52": SAME},
        LLAVA_NAMES,
        named={"image_token": "[IMG]"},
        begins=True,
    )


def glm(repo: str, picture: int, first: int) -> Hub:  # (C) ids of Glm4vConfig; (H) the image token's of GLM-4.6V
    marks = [f"<|{side}_of_{what}|>" for what in ("image", "video") for side in ("begin", "end")]
    ids = {"<|endoftext|>": 151329, "[gMASK]": 151331, "<sop>": 151333, "<|user|>": 151336, "<|assistant|>": 151337}
    keys = ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id")
    return Hub(
        repo,
        ids | {mark: first + i for i, mark in enumerate(marks)} | {"<|image|>": picture, "<|video|>": picture + 1},
        151552,
        (None, "<|endoftext|>", "<|endoftext|>"),
        GLM_TEMPLATE,
        {"since 4.52": SAME},
        {"since 4.52": NEW_Q},
        named={"image_token": "<|image|>"},
        config=dict(zip(keys, marks, strict=True)) | {"video_token_id": "<|video|>"},
    )


def minicpmv46() -> Hub:  # (H) its marks, as runtimes of it name them; (M) their ids, and the names of tensors
    marks = [f"<{end}{what}>" for what in MARKS for end in ("", "/")]
    hub = qwen35()
    return replace(
        hub,
        repo="openbmb/MiniCPM-V-4.6",
        ids=hub.ids | {mark: 248077 + i for i, mark in enumerate(marks)},
        template=QWEN35_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"),
        named={"image_token": "<|image_pad|>"},
        config={"video_token_id": "<|video_pad|>"},
    )


def qwen35() -> Hub:  # (C) Qwen3_5Config: rows, ids of vision; (H) the others, as runtimes of Qwen3.5 name them
    ends = {"<|endoftext|>": 248044, "<|im_start|>": 248045, "<|im_end|>": 248046}
    vision = {"<|vision_start|>": 248053, "<|vision_end|>": 248054, "<|image_pad|>": 248056, "<|video_pad|>": 248057}
    return replace(
        qwen("Qwen/Qwen3.5-9B", 248320, QWEN35_TEMPLATE, old=False),
        ids=ends | vision,
        examples={"since 4.52": "model.language_model.layers.0.linear_attn.in_proj_qkv.weight"},
    )
