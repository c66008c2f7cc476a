"""A fused pair of encoders: mixture of features (Tong et al., 2024, "Eyes Wide Shut?"), as CLIP with DINOv2."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from factory.components.vision import VisionEncoder
from factory.recipe.schema import Node, read_node
from factory.registry import Params, register

Encoder = Annotated[Node, BeforeValidator(lambda raw: read_node("vision_encoder", raw))]


class MofParams(Params):
    """Two encoders: ``{type: clip, source: FOLDER}``.

    ``first`` and ``second`` are nodes of encoders.
    """

    first: Encoder
    second: Encoder


@register("vision_encoder", "mof")
class Mof(VisionEncoder):
    """Two encoders' features, interleaved by connector mof_mlp, side by side in each token by the others."""

    Params = MofParams

    def parts(self) -> list[VisionEncoder]:
        nodes = (self.params.first, self.params.second)
        return [part for node in nodes for part in node.make().parts()]
