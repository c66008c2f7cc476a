"""What a connector says of itself: the module it builds between features and words, and how many image tokens come
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from factory.errors import UserError
from factory.registry import Plugin


class Widths(NamedTuple):
    """Sizes that a connector is built for: of each encoder's features, their number per picture, and the language
    model's width.
    """

    features: Sequence[int]
    tokens: Sequence[int]
    text: int


class Connector(Plugin):
    """Base of the connectors. ``build`` makes a module from a list of features [n, tokens_i, d_i] to image tokens [n,
    t, d].
    """

    def build(self, widths: Widths) -> nn.Module:
        raise TypeError(f"{type(self).__name__} must define build(widths)")

    def tokens(self, widths: Widths) -> int:
        """Image tokens a picture takes."""
        return widths.tokens[0]


class Fused(nn.Module):
    """Features of all encoders side by side in each token, then ``map``."""

    def __init__(self, map: nn.Module) -> None:
        super().__init__()
        self.map = map

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.map(torch.cat(features, -1))


def fused_width(widths: Widths) -> int:
    """Width of the features side by side. Raises ``UserError`` where the encoders' grids differ."""
    if len(set(widths.tokens)) > 1:
        raise UserError(
            f"model.compose: the encoders give {' and '.join(map(str, widths.tokens))} features a picture; choose sizes"
            " whose grids agree"
        )
    return sum(widths.features)


def mlp(depth: int, width: int, text: int) -> nn.Sequential:
    """``depth`` linear maps with GELU between them, from ``width`` to ``text``."""
    layers: list[nn.Module] = [nn.Linear(width, text)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(text, text)]
    return nn.Sequential(*layers)
