"""EfficientNet-Lite0: a light convolutional encoder (ImageNet-1k), for models that a CPU can train and run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from factory.components.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig, our_names
from factory.components.source import Sourced
from factory.components.vision import VisionEncoder
from factory.registry import register


class LiteParams(Sourced):
    """``layers`` whose maps are the features, side by side: 0 the stem, 1 to 16 the blocks, 17 (or -1) the last
    convolution. A feature for every ``stride`` pixels each way (null: as the coarsest of the maps); the cells of a
    finer map are put together, two by two for half the grid.
    """

    layers: Annotated[tuple[int, ...], Field(min_length=1)] = (-1,)
    stride: PositiveInt | None = None


@register("vision_encoder", "efficientnet_lite0")
class EfficientNetLite0(VisionEncoder):
    """EfficientNet-Lite0's maps: [49, 1280] of a picture of 224 x 224 by default."""

    Params = LiteParams
    mean, std = tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
    config_class, model_class = EfficientNetLiteConfig, EfficientNetLite

    @classmethod
    def unpack(cls, released: Path, folder: Path) -> None:
        """Write the released PyTorch file into ``folder`` as ``save_pretrained`` does. Only tensors are read from
        it.
        """
        model = EfficientNetLite(EfficientNetLiteConfig())
        model.load_state_dict(our_names(torch.load(released, map_location="cpu", weights_only=True)))
        model.save_pretrained(folder)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.params.layers

    def tokens(self, config: PreTrainedConfig) -> int:
        return (self.side(config) // self._stride(config)) ** 2

    def width(self, config: PreTrainedConfig) -> int:
        return sum(config.width(layer) * (self._stride(config) // config.stride(layer)) ** 2 for layer in self.layers)

    def features(self, model: Any, pixels: Tensor) -> Tensor:
        depth = max(range(model.config.num_hidden_layers + 1)[layer] for layer in self.layers)
        states = model(pixels, depth).hidden_states
        maps = [states[range(model.config.num_hidden_layers + 1)[layer]] for layer in self.layers]
        side = pixels.shape[-1] // self._stride(model.config)
        return (
            torch.cat([nn.functional.pixel_unshuffle(m, m.shape[-1] // side) for m in maps], 1)
            .flatten(2)
            .transpose(1, 2)
        )

    def _stride(self, config: PreTrainedConfig) -> int:
        return self.params.stride or max(config.stride(layer) for layer in self.layers)
