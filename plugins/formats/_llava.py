"""A composed model in the names of ``LlavaForConditionalGeneration``, where it is one."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

from factory.components.vision import recorded_config
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.view import ModelView

SELECT = {
    "clip": "default",
    "siglip": "full",
}  # what LLaVA leaves out of an encoder's states: the class token, or nothing
NAMES = {
    "model.vision_tower.models.0.": "model.vision_tower.",
    "model.multi_modal_projector.map.0.": "model.multi_modal_projector.linear_1.",
    "model.multi_modal_projector.map.2.": "model.multi_modal_projector.linear_2.",
}
PROMPT = Prompt(
    (Segment(Role.IMAGE, image=Image.new("RGB", (64, 64), "orange")), Segment(Role.QUESTION, "Which color?"))
)
NEAR = {torch.float32: 1e-4}  # of the largest logit; half precision rounds more


def write_as_llava(path: Path, view: ModelView) -> None:
    """Write a composed model as a LLaVA. Raises ``UserError`` where it is none, by its parts or by what it answers."""
    model: Any = view.model
    config, tensors = _config(path, model.config), {_renamed(name): t for name, t in model.state_dict().items()}
    if "lm_head.bias" in tensors:
        raise UserError(f"{path}: its language model has a bias at the unembedding, which LLaVA's class drops")
    model.save_pretrained(path, state_dict=tensors)
    config.save_pretrained(path)
    view.processor.save_pretrained(path)
    _check(path, view)


def _config(path: Path, composed: Any) -> LlavaConfig:
    connector = composed.connector
    [record, *others] = composed.vision
    two = connector["type"] == "mlp2x_gelu" or (connector["type"] == "mlp" and connector.get("depth", 2) == 2)
    if others or record["type"] not in SELECT or not two:
        kinds = " + ".join(each["type"] for each in composed.vision)
        raise UserError(
            f"{path}: a composed model of {kinds} and the connector {connector['type']} is no model that transformers"
            f" knows; only {' or '.join(SELECT)} with mlp2x_gelu is (a LLaVA)"
        )
    return LlavaConfig(
        vision_config=recorded_config(record),
        text_config=deepcopy(composed.text_config),  # the class writes to it
        image_token_id=composed.image_token_id,
        image_seq_length=composed.image_seq_length,
        vision_feature_layer=record["layer"],
        vision_feature_select_strategy=SELECT[record["type"]],
        tie_word_embeddings=composed.text_config.tie_word_embeddings,
    )


def _renamed(name: str) -> str:
    for ours, theirs in NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@torch.no_grad()
def _check(path: Path, view: ModelView) -> None:
    """Take the folder away again where plain transformers makes another model of it."""
    batch = view.encode([PROMPT])
    plain = LlavaForConditionalGeneration.from_pretrained(path, dtype=view.dtype).eval().to(view.device)
    ours, theirs = (each(**batch).logits.float() for each in (view.model, plain))
    if not (ours - theirs).abs().max() <= NEAR.get(view.dtype, 0.05) * ours.abs().max():
        shutil.rmtree(path)
        raise UserError(f"{path}: as a LLaVA the model answers otherwise, so that it is not kept")
