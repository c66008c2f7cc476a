"""Perceiver resampler (Flamingo, Alayrac et al., 2022): learned queries attend to the features, a fixed number of
tokens comes out.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from factory.components.connect import Connector, Widths, fused_width
from factory.registry import Params, register


class ResamplerParams(Params):
    """``queries`` tokens a picture, through ``depth`` layers of ``heads`` heads, ``width`` wide (null: as the words).

    ``positions`` adds what is learnt of each place of the picture to its feature; ``gain`` is what the last norm's
    weights start from, so that image tokens need not start much longer than words.
    """

    queries: PositiveInt = 64
    depth: PositiveInt = 3
    heads: PositiveInt = 8
    width: PositiveInt | None = None
    positions: bool = False
    gain: PositiveFloat = 1.0


class ResamplerLayer(nn.Module):
    """Queries attend to the features and to themselves, then a feed-forward of four times the width."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.norm_features, self.norm_queries = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = nn.MultiheadAttention(d, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        q = self.norm_queries(queries)
        seen = torch.cat([self.norm_features(features), q], 1)
        queries = queries + self.attention(q, seen, seen, need_weights=False)[0]
        return queries + self.mlp(queries)


class PerceiverResampler(nn.Module):
    """Features [n, tokens, width] to [n, queries, text]."""

    def __init__(self, p: ResamplerParams, width: int, tokens: int, text: int) -> None:
        super().__init__()
        d = p.width or text
        self.into = nn.Linear(width, d)
        self.places = nn.Parameter(torch.randn(tokens, d) * d**-0.5) if p.positions else None
        self.queries = nn.Parameter(torch.randn(p.queries, d) * d**-0.5)
        self.layers = nn.ModuleList([ResamplerLayer(d, p.heads) for _ in range(p.depth)])
        self.out = nn.Linear(d, text) if d != text else nn.Identity()
        self.norm = nn.LayerNorm(text)
        nn.init.constant_(self.norm.weight, p.gain)

    def forward(self, features: list[Tensor]) -> Tensor:
        seen = self.into(torch.cat(features, -1))
        seen = seen if self.places is None else seen + self.places
        queries = self.queries.expand(len(seen), -1, -1)
        for layer in self.layers:
            queries = layer(queries, seen)
        return self.norm(self.out(queries))


@register("connector", "resampler")
class Resampler(Connector):
    """Perceiver resampler."""

    Params = ResamplerParams

    def build(self, widths: Widths) -> nn.Module:
        return PerceiverResampler(self.params, fused_width(widths), widths.tokens[0], widths.text)

    def tokens(self, widths: Widths) -> int:
        return self.params.queries
