"""Where a prompt's last token looks on the picture, by layer, whatever steers the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from factory.data.prompt import Prompt, Role
from factory.errors import UserError
from factory.instruments.focus import of_prompts
from factory.model.encode import Batch
from factory.model.view import ModelView


@dataclass(frozen=True)
class Looks:
    """The attention of a prompt's last token on the tokens of its picture, the mean over heads, float32 on the CPU.

    ``on_tokens`` [layers, n] in reading order; ``maps`` [layers, rows, columns] the same where these tokens lie in one
    grid over ``picture``, else None. ``picture`` is what the model sees of it, cut where its processor cuts.
    """

    on_tokens: Tensor
    maps: Tensor | None
    picture: Image.Image

    @property
    def mass(self) -> Tensor:
        """The share [layers] of the attention that lies on the picture."""
        return self.on_tokens.sum(-1)


def looks_at_picture(view: ModelView, prompt: Prompt) -> Looks:
    """Raises ``UserError`` for a prompt that has not one picture, and for attention that is no plain softmax."""
    if len(prompt.images) != 1:
        raise UserError(f"a map of the attention needs one picture, and the prompt has {len(prompt.images)}")
    batch = view.encode([prompt])
    on = (batch.roles == Role.IMAGE) & (batch.input_ids == view.image_token_id)
    if not bool(on.any()):
        raise UserError(f"{type(view.model).__name__} puts no image tokens of its own into the prompt")
    found = of_prompts(view, batch, on, lambda A, on: A.mean(1)[on])
    on_tokens = torch.stack(found).float()
    grid = view.family.image_grid(batch.images, on_tokens.shape[1])
    return Looks(on_tokens, on_tokens.unflatten(1, grid) if grid else None, seen_picture(view, batch, prompt.images[0]))


def seen_picture(view: ModelView, batch: Batch, picture: Image.Image) -> Image.Image:
    """What the model sees of the only ``picture`` of a batch: its pixels where they are one image, else the picture,
    which is only resized."""
    pixels, processor = batch.images.get("pixel_values"), getattr(view.processor, "image_processor", None)
    spread: Any = getattr(processor, "image_std", None)
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) != 1 or spread is None:
        return picture
    mean = torch.tensor(getattr(processor, "image_mean", 0.0), device=pixels.device).view(-1, 1, 1)
    shown = pixels[0].float() * torch.tensor(spread, device=pixels.device).view(-1, 1, 1) + mean
    return Image.fromarray((shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy().astype(np.uint8))
