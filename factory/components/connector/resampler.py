"""Perceiver resampler (Flamingo, Alayrac et al., 2022): learned queries attend to the features, a fixed number of tokens comes out."""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from factory.components.connect import Connector, Widths, fused_width
from factory.registry import Params, register


class ResamplerParams(Params):
    """``queries`` tokens a picture, through ``depth`` layers of ``heads`` heads."""

    queries: PositiveInt = 64
    depth: PositiveInt = 3
    heads: PositiveInt = 8


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

    def __init__(self, p: ResamplerParams, width: int, text: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, text)
        self.queries = nn.Parameter(torch.randn(p.queries, text) * text**-0.5)
        self.layers = nn.ModuleList([ResamplerLayer(text, p.heads) for _ in range(p.depth)])
        self.norm = nn.LayerNorm(text)

    def forward(self, features: list[Tensor]) -> Tensor:
        seen = self.into(torch.cat(features, -1))
        queries = self.queries.expand(len(seen), -1, -1)
        for layer in self.layers:
            queries = layer(queries, seen)
        return self.norm(queries)


@register("connector", "resampler")
class Resampler(Connector):
    """Perceiver resampler."""

    Params = ResamplerParams

    def build(self, widths: Widths) -> nn.Module:
        return PerceiverResampler(self.params, fused_width(widths), widths.text)

    def tokens(self, widths: Widths) -> int:
        return self.params.queries
