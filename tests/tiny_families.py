"""A small model of random weights for every family: the real classes, built from configurations in a fraction of a
second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from factory.model.compose import compose
from factory.model.family import frozen
from factory.model.parts import Parts
from factory.model.view import ModelView
from factory.registry import lookup
from tests.compose import composed_spec, encoder, llm
from tests.tiny import tiny_tokenizer
from tests.tiny_parts import CHATML, TURNS, VISION, image_id, text_config, tokenizer, written
from tests.tiny_qwen import QWEN
from tests.tiny_recent import RECENT
from tests.tiny_texts import TEXTS, Built

SEEING: dict[str, Callable[[], Built]] = {}  # those with a picture side


def builder(build: Callable[[], Built]) -> Callable[[], Built]:
    SEEING[build.__name__] = build
    return build


@builder
def llava_next() -> Built:
    tokens = tokenizer(bos="<s>")
    pinpoints = [[24, 48], [48, 24], [48, 48]]
    vision = {**VISION, "model_type": "clip_vision_model", "image_size": 24, "patch_size": 6, "projection_dim": 32}
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=text_config("mistral", tokens, sliding_window=None),
        image_token_index=image_id(tokens),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    size = {"height": 24, "width": 24}
    pixels = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size=size, image_grid_pinpoints=pinpoints
    )
    template = written(TURNS, BEGIN="<s>", ASKED="[INST] ", GIVEN=" [/INST]", IMAGE="<image>\n", END=" ")
    processor = transformers.LlavaNextProcessor(
        pixels,
        tokens,
        patch_size=6,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


@builder
def llava_onevision() -> Built:
    tokens = tokenizer("<|im_start|>", "<|im_end|>", "<video>", eos="<|im_end|>")
    pinpoints = [[24, 48], [48, 24], [48, 48], [72, 72]]
    vision = {
        **VISION,
        "model_type": "siglip_vision_model",
        "image_size": 24,
        "patch_size": 6,
        "vision_use_head": False,
    }
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text_config("qwen2", tokens),
        image_token_index=image_id(tokens),
        vision_aspect_ratio="anyres_max_4",
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=True,
    )
    pixels = transformers.LlavaOnevisionImageProcessorPil(
        size={"height": 24, "width": 24}, image_grid_pinpoints=pinpoints
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), Parts(
        pixels, tokens, written(CHATML, IMAGE="<image>\n")
    )


@builder
def internvl() -> Built:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokens = tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", named={"image_token": "<IMG_CONTEXT>", **names})
    vision = {**VISION, "image_size": [24, 24], "patch_size": [6, 6]}
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=text_config("qwen2", tokens),
        image_token_id=image_id(tokens),
        image_seq_length=4,
        tie_word_embeddings=True,
    )
    pixels = transformers.GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}, max_patches=4, min_patches=1)
    return transformers.InternVLForConditionalGeneration(config), Parts(
        pixels, tokens, written(CHATML, IMAGE="<IMG_CONTEXT>\n")
    )


def idefics(model: Any, config: Any, kind: str, tokens: PreTrainedTokenizerFast) -> tuple[Any, dict[str, Any]]:
    vision = {**VISION, "image_size": 24, "patch_size": 6}
    cfg = config(
        vision_config=vision,
        text_config=text_config(kind, tokens),
        image_token_id=image_id(tokens),
        scale_factor=2,
        tie_word_embeddings=True,
        pad_token_id=tokens.pad_token_id,
    )
    return model(cfg), {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}}


TILES = [
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{r}_col_{c}>" for r in (1, 2, 3) for c in (1, 2, 3)),
]


@builder
def idefics3() -> Built:
    tokens = tokenizer(*TILES, bos="<s>", eos="<end_of_utterance>")
    model, sizes = idefics(transformers.Idefics3ForConditionalGeneration, transformers.Idefics3Config, "llama", tokens)
    template = written(
        TURNS, BEGIN="<s>", ASKED="User:", GIVEN="Assistant:", IMAGE="<image>", END="<end_of_utterance>\n"
    )
    pixels = Idefics3ImageProcessorPil(**sizes)
    return model, transformers.Idefics3Processor(pixels, tokens, image_seq_len=4, chat_template=template)


@builder
def smolvlm() -> Built:
    tokens = tokenizer(*TILES, "<|im_start|>", bos="<|im_start|>", eos="<end_of_utterance>")
    model, sizes = idefics(transformers.SmolVLMForConditionalGeneration, transformers.SmolVLMConfig, "llama", tokens)
    template = written(
        TURNS, BEGIN="<|im_start|>", ASKED="User:", GIVEN="Assistant:", IMAGE="<image>", END="<end_of_utterance>\n"
    )
    return model, Parts(SmolVLMImageProcessorPil(**sizes), tokens, template)


@builder
def gemma3() -> Built:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = tokenizer("<start_of_turn>", "<end_of_turn>", bos="<s>", eos="<end_of_turn>", named=names)
    text = text_config(
        "gemma3_text",
        tokens,
        head_dim=8,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    text |= {"query_pre_attn_scalar": 8}
    vision = {
        **VISION,
        "model_type": "siglip_vision_model",
        "image_size": 24,
        "patch_size": 6,
        "vision_use_head": False,
    }
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=image_id(tokens),
        boi_token_index=tokens.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokens.convert_tokens_to_ids("<end_of_image>"),
        tie_word_embeddings=False,
    )
    pixels = transformers.Gemma3ImageProcessorPil(size={"height": 24, "width": 24})
    template = written(
        TURNS,
        BEGIN="<s>",
        ASKED="<start_of_turn>user\n",
        GIVEN="<start_of_turn>model\n",
        IMAGE="<start_of_image>",
        END="<end_of_turn>\n",
    )
    return transformers.Gemma3ForConditionalGeneration(config), transformers.Gemma3Processor(
        pixels, tokens, template, image_seq_length=4
    )


@builder
def paligemma() -> Built:
    tokens = tokenizer(bos="<s>")
    pixels = transformers.SiglipImageProcessorPil(size={"height": 24, "width": 24})
    pixels.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(pixels, tokens)
    vision = {
        **VISION,
        "model_type": "siglip_vision_model",
        "image_size": 24,
        "patch_size": 6,
        "vision_use_head": False,
        "projection_dim": 48,
    }
    text = text_config("gemma", tokens, head_dim=12)
    config = transformers.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=image_id(tokens), projection_dim=48, hidden_size=48
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


@builder
def deepseek_vl() -> Built:
    tokens = tokenizer(bos="<s>", named={"image_token": "<image_placeholder>"})
    vision = {
        **VISION,
        "model_type": "siglip_vision_model",
        "image_size": 24,
        "patch_size": 6,
        "vision_use_head": False,
    }
    config = transformers.DeepseekVLConfig(
        text_config=text_config("llama", tokens), vision_config=vision, image_token_id=image_id(tokens)
    )
    template = written(
        TURNS, BEGIN="<s>Be helpful.\n\n", ASKED="User: ", GIVEN="Assistant:", IMAGE="<image_placeholder>", END="\n\n"
    )
    pixels = transformers.DeepseekVLImageProcessorPil(size={"height": 24, "width": 24}, min_size=4)
    processor = transformers.DeepseekVLProcessor(pixels, tokens, chat_template=template, num_image_tokens=16)
    return transformers.DeepseekVLForConditionalGeneration(config), processor


@builder
def structural() -> Built:
    """ViP-LLaVA, which has no family of its own."""
    tokens = tokenizer(bos="<s>")
    vision = {
        **VISION,
        "num_hidden_layers": 2,
        "model_type": "clip_vision_model",
        "image_size": 24,
        "patch_size": 6,
        "projection_dim": 32,
    }
    config = transformers.VipLlavaConfig(
        vision_config=vision,
        text_config=text_config("llama", tokens),
        image_token_index=image_id(tokens),
        vision_feature_layers=[-1, -2],
        image_seq_length=16,
        tie_word_embeddings=True,
    )
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    template = written(TURNS, BEGIN="<s>", ASKED="###Human: ", GIVEN="###Assistant:", IMAGE="<image>\n", END="\n")
    processor = transformers.LlavaProcessor(
        pixels,
        tokens,
        patch_size=6,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return transformers.VipLlavaForConditionalGeneration(config), processor


@builder
def steering_factory_composed() -> Built:
    """A pair of encoders interleaved into Phi, whose norm and output projection have names of their own."""
    return compose(composed_spec(encoder("mof"), "mof_mlp", llm("phi")), 0, tiny_tokenizer(400))


SEEING |= QWEN | RECENT
BUILDERS = SEEING | TEXTS


@cache
def family_view(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> ModelView:
    """A frozen random model of a family; one object per set of arguments, so leave it as you found it."""
    torch.manual_seed(seed)
    model, processor = BUILDERS[name]()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    view = ModelView(frozen(model.to(dtype)), processor, lookup("family", name).of(model.config))
    KEPT.append((view, outline(view)))
    return view


def own_family_view(name: str) -> ModelView:
    """The same, of a test's own."""
    return family_view.__wrapped__(name)


KEPT: list[tuple[ModelView, tuple]] = []  # the shared models, as they were made


def outline(view: ModelView) -> tuple:
    """What a test could leave changed on a shared model, without a word to the tests after it."""
    parts = (view.family, type(view.family).positions, view.processor, view.model)
    return (*map(id, parts), view.positions, view.model.training)
