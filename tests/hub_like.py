"""Folders as the hub has them for every family: its names of tensors before and after transformers 4.52, its shards,
half precision, special tokens at their true ids and its chat templates. The weights alone are small and random.

Sources of the facts: (S) transformers' scripts that made the hub's files, convert_*_weights_to_hf.py; (H) files or
pages of the hub, by repository; (C) classes and configurations of transformers; (M) memory, not checked.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from factory.model.parts import Parts
from tests.hub_templates import (
    DEEPSEEK_TEMPLATE,
    GEMMA3_TEMPLATE,
    GLM_TEMPLATE,
    IDEFICS3_TEMPLATE,
    INTERNVL_TEMPLATE,
    LLAVA_TEMPLATE,
    MISTRAL_TEMPLATE,
    ONEVISION_TEMPLATE,
    PIXTRAL_TEMPLATE,
    QWEN2_TEMPLATE,
    QWEN3_TEMPLATE,
    QWEN35_TEMPLATE,
    SMOLVLM_TEMPLATE,
)
from tests.tiny import tiny_tokenizer, tiny_view
from tests.tiny_families import BUILDERS
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


HUB: dict[str, Hub] = {
    "qwen3_5": qwen35(),
    "minicpmv4_6": minicpmv46(),
    "mistral3": rows("mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
    "pixtral": rows("mistral-community/pixtral-12b"),
    "glm4v": glm("zai-org/GLM-4.1V-9B-Thinking", 151343, 151339),
    "glm46v": glm("zai-org/GLM-4.6V-Flash", 151363, 151339),
    "llava": Hub(
        "llava-hf/llava-1.5-7b-hf",
        LLAMA2,
        32064,
        ("<s>", "</s>", "<pad>"),
        LLAVA_TEMPLATE,
        LLAVA_ERAS,
        LLAVA_NAMES,
        torch.float16,
        joined=transformers.LlavaProcessor,
        options={"patch_size": 12, "image_token": "<image>", **SELECTED},
        begins=True,
    ),
    "llava_next": Hub(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        LLAMA2,
        32064,
        ("<s>", "</s>", "<pad>"),
        MISTRAL_TEMPLATE,
        LLAVA_ERAS,
        LLAVA_NAMES,
        torch.float16,
        joined=transformers.LlavaNextProcessor,
        options={"patch_size": 6, **SELECTED},
        begins=True,
    ),
    "llava_onevision": Hub(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        CHATML | {"<image>": 151646, "<video>": 151647},
        152128,
        (None, "<|im_end|>", "<|endoftext|>"),
        ONEVISION_TEMPLATE,
        LLAVA_ERAS,
        LLAVA_NAMES,
        torch.float16,
        config={"video_token_id": "<video>"},
    ),
    "qwen2_vl": qwen("Qwen/Qwen2-VL-7B-Instruct", 152064, QWEN2_TEMPLATE, old=True),
    "qwen2_5_vl": qwen("Qwen/Qwen2.5-VL-7B-Instruct", 152064, QWEN2_TEMPLATE, old=True),
    "qwen3_vl": qwen("Qwen/Qwen3-VL-8B-Instruct", 151936, QWEN3_TEMPLATE, old=False),
    "internvl": Hub(
        "OpenGVLab/InternVL3-8B-hf",
        CHATML | {"<img>": 151665, "</img>": 151666, "<IMG_CONTEXT>": 151667},
        151674,
        (None, "<|im_end|>", "<|endoftext|>"),
        INTERNVL_TEMPLATE,
        {"before 4.52": INTERNVL_OLD, "since 4.52": SAME},
        LLAVA_NAMES,
        named={
            "image_token": "<IMG_CONTEXT>",
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
        },
    ),
    "idefics3": Hub(  # (C), (M): Llama 3's vocabulary and three more
        "HuggingFaceM4/Idefics3-8B-Llama3",
        {
            "<|begin_of_text|>": 128000,
            "<|end_of_text|>": 128001,
            "<|reserved_special_token_0|>": 128002,
            "<fake_token_around_image>": 128256,
            "<image>": 128257,
            "<end_of_utterance>": 128258,
        },
        128259,
        ("<|begin_of_text|>", "<end_of_utterance>", "<|reserved_special_token_0|>"),
        IDEFICS3_TEMPLATE,
        {"all": SAME},
        {"all": "model.text_model.layers.0.self_attn.q_proj.weight"},
        joined=transformers.Idefics3Processor,
        options={"image_seq_len": 4},
    ),
    "smolvlm": Hub(  # (H) generation_config.json; (M) the others
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        {
            "<|endoftext|>": 0,
            "<|im_start|>": 1,
            "<|im_end|>": 2,
            "<global-img>": 49152,
            "<fake_token_around_image>": 49189,
            "<image>": 49190,
            "<end_of_utterance>": 49279,
        },
        49280,
        ("<|im_start|>", "<end_of_utterance>", "<|im_end|>"),
        SMOLVLM_TEMPLATE,
        {"all": SAME},
        {"all": "model.text_model.layers.0.self_attn.q_proj.weight"},
    ),
    "gemma3": Hub(  # (S), (C): Gemma3Config's own ids; (M) those of turns
        "google/gemma-3-4b-it",
        GEMMA
        | {"<start_of_turn>": 105, "<end_of_turn>": 106, "<start_of_image>": 255999, "<end_of_image>": 256000}
        | {"<image_soft_token>": 262144},
        262208,
        ("<bos>", "<eos>", "<pad>"),
        GEMMA3_TEMPLATE,
        LLAVA_ERAS,
        LLAVA_NAMES,
        tied=True,
        named={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        config={"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>"},
        joined=transformers.Gemma3Processor,
        options={"image_seq_length": 4},
        begins=True,
    ),
    "paligemma": Hub(
        "google/paligemma-3b-mix-224",
        GEMMA | {"<image>": 257152},
        257216,
        ("<bos>", "<eos>", "<pad>"),
        None,
        LLAVA_ERAS,
        LLAVA_NAMES,
        tied=True,
        joined=transformers.PaliGemmaProcessor,
        begins=True,
    ),
    "deepseek_vl": Hub(  # (H) deepseek-ai's and hf-tiny-v2's configurations; (M) the image token's id
        "deepseek-community/deepseek-vl-1.3b-chat",
        {"<｜begin▁of▁sentence｜>": 100000, "<｜end▁of▁sentence｜>": 100001, "<image_placeholder>": 100015},
        102400,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        DEEPSEEK_TEMPLATE,
        {"since 4.54": DEEPSEEK},
        {"since 4.54": "model.vision_model.vision_model.encoder.layers.0.self_attn.q_proj.weight"},
        torch.float16,
        named={"image_token": "<image_placeholder>"},
        joined=transformers.DeepseekVLProcessor,
        options={"num_image_tokens": 16},
        begins=True,
    ),
}
CASES = [(name, era) for name, hub in HUB.items() for era in hub.eras]


def tokenizer_of(hub: Hub) -> PreTrainedTokenizerFast:
    """The tiny tokenizer's words, beside special tokens at their true ids."""
    made = json.loads(tiny_tokenizer(400).backend_tokenizer.to_str())
    small = {token["content"] for token in made["added_tokens"]}
    words = [word for word in sorted(made["model"]["vocab"], key=made["model"]["vocab"].get) if word not in small]
    made["model"]["vocab"] = {word: WORDS_FROM + i for i, word in enumerate(words)} | dict(hub.ids)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    made["added_tokens"] = [{"id": i, "content": token, **plain} for token, i in hub.ids.items()]
    bos, eos, pad = hub.ends
    made["post_processor"] = (
        hub.begins
        and {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [hub.ids[bos]], "tokens": [bos]}},
        }
        or None
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(made)),
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=dict(hub.named),
        padding_side="left",
    )


def built(name: str, seed: int = 0) -> tuple[Any, Any]:
    """A family's model with the hub's ids, its weights rounded to the hub's precision, and its processor."""
    hub, tokens = HUB[name], tokenizer_of(HUB[name])
    small, processor = (tiny_view().model, tiny_view().processor) if name == "llava" else BUILDERS[name]()
    config = copy.deepcopy(small.config)
    text = config.get_text_config()
    text.vocab_size, text.tie_word_embeddings, config.tie_word_embeddings = hub.rows, hub.tied, hub.tied
    ends = [hub.ids.get(token) for token in hub.ends]
    for at in (config, text):
        at.bos_token_id, at.eos_token_id, at.pad_token_id = ends
    config.image_token_id = hub.ids[hub.named["image_token"]]
    for key, token in hub.config.items():
        setattr(config, key, hub.ids[token])
    torch.manual_seed(seed)
    model = type(small)(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(hub.dtype).float()
    model.generation_config.eos_token_id = tokens.eos_token_id
    pixels = processor.image_processor
    if hub.joined is Parts:
        return model, Parts(pixels, tokens, hub.template)
    template = {"chat_template": hub.template} if hub.template else {}
    return model, hub.joined(pixels, tokens, **template, **hub.options)


def there(hub: Hub, era: str, model: Any) -> dict[str, torch.Tensor]:
    """A model's tensors by the names of an era, without what is tied."""
    tied = set(model.all_tied_weights_keys)
    return {_renamed(key, hub.eras[era]): tensor for key, tensor in model.state_dict().items() if key not in tied}


def _renamed(key: str, names: Names) -> str:
    return next((re.sub(ours, theirs, key) for ours, theirs in names if re.search(ours, key)), key)


def write(name: str, era: str, model: Any, processor: Any, folder: Path, shards: int = 3) -> Path:
    """``folder`` as the hub has it: the era's names and files."""
    hub = HUB[name]
    tensors = {key: t.to(hub.dtype) if t.is_floating_point() else t for key, t in there(hub, era, model).items()}
    names, places = sorted(tensors), {}
    for n in range(shards):
        file, held = f"model-{n + 1:05d}-of-{shards:05d}.safetensors", names[n::shards]
        save_file({key: tensors[key].clone() for key in held}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(held, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [type(model).__name__], "torch_dtype": str(hub.dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config))
    if era == "before 4.52":
        _older_files(folder)
    return folder


def _older_files(folder: Path) -> None:
    """Each part of a processor in a file of its own, the template in JSON."""
    if (path := folder / "chat_template.jinja").is_file():
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": path.read_text()}))
        path.unlink()
    if (path := folder / "processor_config.json").is_file():
        written = json.loads(path.read_text())
        if pixels := written.pop("image_processor", None):
            (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
        path.write_text(json.dumps(written))
