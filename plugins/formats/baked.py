"""A whole checkpoint whose bias carries the vector: the one form that every engine runs. SPEC.md 12.

strength * v is added to the bias of the last linear map of block N, so that the block's output moves by it at all
positions. Where the maps of the MLP have no biases and the configuration knows the switch ``mlp_bias`` (Llama's), it is
turned on, and all other biases are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factory import files
from factory.errors import UserError
from factory.formats import Format, constant, refuse_filled
from factory.model.view import ModelView
from factory.registry import register
from factory.steer import Steering
from plugins.formats._bias import last_map


@register("format", "baked")
class Baked(Format):
    """A complete model folder for plain transformers and whatever takes one, steered for good."""

    def write(self, path: Path, steerings: Sequence[Steering], view: ModelView) -> str:
        if view.parts or getattr(view.model, "is_quantized", False):
            raise UserError(
                f"{path}: only a plain transformers model can be written whole; this one is packed or has parts of its"
                " own"
            )
        refuse_filled(path)
        config: Any = deepcopy(view.model.config)
        tensors = dict(view.model.state_dict())
        for each in [constant(path, s, view.width) for s in steerings]:
            vector = each.strength * each.vector
            name, _ = last_map(path, view, each.block)
            if f"{name}.bias" not in tensors:
                _switch_biases_on(path, view, config, tensors)
            bias = tensors[f"{name}.bias"]
            tensors[f"{name}.bias"] = (bias.float() + vector.to(bias.device)).to(bias.dtype)
        files.make_folder(path)
        model: Any = view.model
        model.save_pretrained(path, state_dict=tensors)
        config.save_pretrained(path)
        view.processor.save_pretrained(path)
        return f"{type(view.model).__name__}.from_pretrained('{path}')   # the strength is in the weights"


def _switch_biases_on(path: Path, view: ModelView, config: Any, tensors: dict[str, Tensor]) -> None:
    """Give the maps of every block's MLP a bias of zeros. Raises ``UserError`` where the configuration has no switch
    for it."""
    text = config.get_text_config()
    if getattr(text, "mlp_bias", None) is not False:
        raise UserError(
            f"{path}: {type(view.model).__name__}'s MLPs have no biases, and a configuration of type"
            f" '{text.model_type}' has no switch for them; `beft` carries the vector as an adapter"
        )
    text.mlp_bias = True
    beside = {id(m) for layer in view.layers for m in view.family.attention(layer).modules()}
    inside = {id(m) for layer in view.layers for m in layer.modules()} - beside
    for name, each in view.model.named_modules():
        if id(each) in inside and isinstance(each, nn.Linear):
            tensors[f"{name}.bias"] = torch.zeros(each.out_features, dtype=each.weight.dtype)
