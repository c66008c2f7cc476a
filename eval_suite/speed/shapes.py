"""Models of a zoo card's true sizes with random weights, built where they are to run: for the benchmarks, where no
weights are needed.

The vocabulary is as large as the card's, the tokenizer a small one that knows the family's special tokens: what a
prompt's words cost is then about right, what they say does not matter.
"""

from __future__ import annotations

from random import Random
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from eval_suite.scenes.curriculum import Mix, lesson
from factory.errors import UserError
from factory.model.facts import gigabytes, sizes_of
from factory.model.family import frozen
from factory.model.load import device_for
from factory.model.parts import Parts
from factory.model.source import family_of
from factory.model.view import ModelView
from factory.train.scratch.build import CHAT_TEMPLATE, train_tokenizer
from factory.zoo.cards import read_card

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% for c in m['content'] %}{{"
    " '<|vision_start|><|image_pad|><|vision_end|>' if c['type'] == 'image' else c['text'] }}{% endfor %}{{"
    " '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PHOTO = (
    640 * 480
)  # pixels of the usual COCO picture; smaller ones are made as large, so that an image has as many tokens
FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl")


def shaped(card_name: str, device: str, dtype: str = "bfloat16", layers: int | None = None) -> ModelView:
    """A frozen model of a card's sizes with random weights on ``device``; ``layers`` cuts its decoder and its vision
    tower short.

    Raises ``UserError`` for a card of another family, a device that is not there or too small, and for the whole depth
    on a CPU.
    """
    card = read_card(card_name)
    if card.family not in FAMILIES:
        raise UserError(
            f"--shape {card_name}: a {card.family} model cannot be built of sizes alone here; there are cards of"
            f" {', '.join(FAMILIES)}"
        )
    config, place = card.hf_config(), device_for(device)
    family, number = family_of(config), getattr(torch, dtype)
    if layers:
        config.get_text_config().num_hidden_layers = layers
        name = "depth" if hasattr(config.vision_config, "depth") else "num_hidden_layers"
        setattr(config.vision_config, name, layers)
        if hasattr(config.vision_config, "fullatt_block_indexes"):
            config.vision_config.fullatt_block_indexes = [layers - 1]
        if types := getattr(config.get_text_config(), "layer_types", None):
            config.get_text_config().layer_types = types[:layers]
    size = sizes_of(config, family, number)
    told = f"--shape {card_name}: {size.parameters / 1e9:.1f} B parameters, {gigabytes(size.bytes)} in {dtype}"
    if place.type == "cpu" and not layers:
        raise UserError(
            f"{told}, are for a GPU, and here there is none: --device cuda on a machine with one, or --layers 2 --dtype"
            " float32 to try it on the CPU"
        )
    if place.type == "cuda" and size.bytes > (there := torch.cuda.get_device_properties(place).total_memory):
        raise UserError(f"{told}, do not fit into the {gigabytes(there)} of {place}")
    tokens = tokenizer()
    config.image_token_id = tokens.convert_tokens_to_ids("<|image_pad|>" if "qwen" in card.family else "<image>")
    before = torch.get_default_dtype()
    torch.set_default_dtype(number)
    try:
        torch.manual_seed(0)
        with place:
            model = family.hf_class()(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
        tokens.eos_token_id,
        tokens.pad_token_id,
    )
    view = ModelView(frozen(model.to(number)), processor(card.family, config, tokens), family)
    view.defaults = card.defaults
    return view


def tokenizer() -> PreTrainedTokenizerFast:
    trained = train_tokenizer(
        ["\n".join(s.text for s in lesson(Random(i), 0.5, Mix()).segments) for i in range(200)], 1024
    )
    marks = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    trained.add_special_tokens({"additional_special_tokens": list(marks)}, replace_extra_special_tokens=False)
    return trained


def processor(family: str, config: Any, tokens: PreTrainedTokenizerFast) -> Any:
    if family == "llava":
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        pixels = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        return transformers.LlavaProcessor(
            pixels,
            tokens,
            patch_size=patch,
            vision_feature_select_strategy="default",
            chat_template=CHAT_TEMPLATE,
            image_token="<image>",
            num_additional_image_tokens=1,
        )
    v = config.vision_config
    sizes = {"shortest_edge": PHOTO, "longest_edge": 4 * PHOTO}
    pixels = transformers.Qwen2VLImageProcessorPil(
        size=sizes, patch_size=v.patch_size, merge_size=v.spatial_merge_size, temporal_patch_size=v.temporal_patch_size
    )
    return Parts(pixels, tokens, CHATML)
