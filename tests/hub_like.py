"""Folders as the hub has them for every family: its names of tensors before and after transformers 4.52, its shards,
half precision, special tokens at their true ids and its chat templates. The weights alone are small and random.

Sources of the facts: (S) transformers' scripts that made the hub's files, convert_*_weights_to_hf.py; (H) files or
pages of the hub, by repository; (C) classes and configurations of transformers; (M) memory, not checked.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from factory.model.parts import Parts
from tests.hub_facts import (
    CHATML,
    DEEPSEEK,
    GEMMA,
    INTERNVL_OLD,
    LLAMA2,
    LLAVA_ERAS,
    LLAVA_NAMES,
    SAME,
    SELECTED,
    WORDS_FROM,
    Hub,
    Names,
    glm,
    minicpmv46,
    qwen,
    qwen35,
    rows,
)
from tests.hub_templates import (
    DEEPSEEK_TEMPLATE,
    GEMMA3_TEMPLATE,
    IDEFICS3_TEMPLATE,
    INTERNVL_TEMPLATE,
    LLAVA_TEMPLATE,
    MISTRAL_TEMPLATE,
    ONEVISION_TEMPLATE,
    QWEN2_TEMPLATE,
    QWEN3_TEMPLATE,
    SMOLVLM_TEMPLATE,
)
from tests.tiny import tiny_tokenizer, tiny_view
from tests.tiny_families import BUILDERS

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
