"""What a model family must say about itself: the only place that knows module paths and image-token rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn


class Family:
    """Base of the families; a subclass overrides only what differs from the common Hugging Face layout.

    A family is registered under its configuration's ``model_type`` and names its ``config_class``;
    a model is matched by that class, never by a path.
    """

    config_class: ClassVar[str]
    model_class: ClassVar[str]
    processor_class: ClassVar[str]
    default_k_sigma: ClassVar[float] = 0.1
    vision_path: ClassVar[str] = "model.vision_tower"
    connector_path: ClassVar[str] = "model.multi_modal_projector"
    attention_path: ClassVar[str] = "self_attn"
    output_projection_path: ClassVar[str] = "self_attn.o_proj"

    def core(self, model: nn.Module) -> nn.Module:
        """The model without its unembedding; called like the model, it returns ``last_hidden_state`` after the norm."""
        return model.model

    def decoder(self, model: nn.Module) -> nn.Module:
        """The language decoder: a module with ``layers`` and ``norm``."""
        return model.get_decoder()

    def vision_tower(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.vision_path)

    def connector(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.connector_path)

    def attention(self, block: nn.Module) -> nn.Module:
        """The self-attention of a decoder block."""
        return block.get_submodule(self.attention_path)

    def output_projection(self, block: nn.Module) -> nn.Module:
        """The linear map from a block's concatenated head outputs [.., heads * head_dim] to its residual stream [.., d]."""
        return block.get_submodule(self.output_projection_path)

    def image_token_id(self, model: nn.Module) -> int:
        return model.config.image_token_id

    def image_inputs(self, processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Model inputs of all images of a batch, in reading order (empty where there is none)."""
        return dict(processor.image_processor(images=list(images), return_tensors="pt")) if images else {}

    def image_token_counts(self, model: nn.Module, inputs: dict[str, Tensor], n_images: int) -> list[int]:
        """How many image tokens each image takes."""
        raise TypeError(f"{type(self).__name__} must define image_token_counts")

    def position_ids(self, mask: Tensor) -> Tensor:
        """Position of each token [B, T] from its attention mask [B, T]: padding does not count."""
        return (mask.long().cumsum(-1) - 1).clamp_min(0)


def frozen(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with no parameter asking for a gradient."""
    return model.eval().requires_grad_(False)


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
