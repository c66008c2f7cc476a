"""Interleaved mixture of features (Tong et al., 2024): an MLP for each encoder, then one encoder's tokens between the
other's.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from factory.components.connect import Connector, Widths, fused_width, mlp
from factory.errors import UserError
from factory.registry import Params, register


class MofMlpParams(Params):
    """``depth`` linear maps for each encoder."""

    depth: PositiveInt = 2


class Interleaved(nn.Module):
    """Features [n, t, d_i] of k encoders to tokens [n, k t, d]: those of one place in the picture stand together."""

    def __init__(self, maps: list[nn.Module]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, features: list[Tensor]) -> Tensor:
        return torch.stack([map(f) for map, f in zip(self.maps, features, strict=True)], 2).flatten(1, 2)


@register("connector", "mof_mlp")
class MofMlp(Connector):
    """Interleaved tokens of a fused pair."""

    Params = MofMlpParams

    def build(self, widths: Widths) -> nn.Module:
        if len(widths.features) < 2:
            raise UserError("model.compose.connector: mof_mlp needs two encoders; choose vision_encoder type mof")
        fused_width(widths)
        return Interleaved([mlp(self.params.depth, width, widths.text) for width in widths.features])

    def tokens(self, widths: Widths) -> int:
        return sum(widths.tokens)
