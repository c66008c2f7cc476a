"""What a vision encoder says of itself: its Hugging Face classes, which of its states are features, how it sees
pictures.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor, nn
from transformers import AutoConfig, CLIPImageProcessorPil, PreTrainedConfig

from factory.components.source import Sourced, class_of
from factory.registry import Plugin


class EncoderParams(Sourced):
    """``layer``: whose hidden states are the features, -2 the last but one (LLaVA-1.5)."""

    layer: int = -2


class VisionEncoder(Plugin):
    """Base of the vision encoders; a subclass is a line or two."""

    Params: ClassVar[type[BaseModel]] = EncoderParams
    config_class: ClassVar[str | type]
    model_class: ClassVar[str | type]
    """Names of transformers' classes, or classes of our own."""
    before_patches: ClassVar[int] = 0
    """Tokens before the patches (class token, registers), which are no features."""
    crops: ClassVar[bool] = False
    """Whether a picture is cropped to a square; else it is stretched to one, so that nothing of it is lost."""
    mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    def parts(self) -> list[VisionEncoder]:
        """The encoders whose features go side by side into the connector: this one alone, unless it is a fused pair."""
        return [self]

    @property
    def layers(self) -> tuple[int, ...]:
        """Whose hidden states are the features."""
        return (self.params.layer,)

    def config(self) -> PreTrainedConfig:
        """The encoder's own configuration. Raises ``UserError`` where its source is not there or is another class of
        model.
        """
        return self.params.read_config(self.config_class, "vision_config")

    def account(self, config: PreTrainedConfig) -> None:
        """Refuse a source whose weights are not those of the encoder, by their headers."""
        self.params.account(class_of(self.model_class), config)

    def load(self, config: PreTrainedConfig) -> nn.Module:
        """The encoder with its source's weights, or with random ones."""
        return self.params.read_weights(class_of(self.model_class), config)

    def side(self, config: PreTrainedConfig) -> int:
        """Height and width of its picture in pixels."""
        return config.image_size

    def tokens(self, config: PreTrainedConfig) -> int:
        """How many features a picture gives."""
        return (self.side(config) // config.patch_size) ** 2

    def width(self, config: PreTrainedConfig) -> int:
        """How wide a feature is."""
        return config.hidden_size

    def features(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Features [n, tokens, d] of pictures [n, 3, side, side]."""
        return model(pixel_values=pixels, output_hidden_states=True).hidden_states[self.params.layer][
            :, self.before_patches :
        ]

    def image_processor(self, config: PreTrainedConfig) -> CLIPImageProcessorPil:
        side = self.side(config)
        square = {"height": side, "width": side}
        return CLIPImageProcessorPil(
            size={"shortest_edge": side} if self.crops else square,
            crop_size=square,
            do_center_crop=self.crops,
            image_mean=list(self.mean),
            image_std=list(self.std),
        )

    def record(self, config: PreTrainedConfig) -> dict[str, Any]:
        """What a composed model's configuration keeps of it."""
        options = self.params.model_dump(mode="json", exclude=set(Sourced.model_fields))
        return {"type": self.name, **options, "config": config.to_dict()}


def recorded_config(record: dict[str, Any]) -> PreTrainedConfig:
    """The configuration in a ``record``."""
    sizes = dict(record["config"])
    return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
