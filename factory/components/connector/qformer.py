"""Q-Former (BLIP-2, Li et al., 2023): learned queries through a small transformer with cross-attention, then a linear
map.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from factory.components.connect import Connector, Widths, fused_width
from factory.registry import Params, register


class QFormerParams(Params):
    """``queries`` tokens a picture; the Q-Former's own ``width``, ``depth`` and ``heads`` (BLIP-2's by default)."""

    queries: PositiveInt = 32
    width: PositiveInt = 768
    depth: PositiveInt = 12
    heads: PositiveInt = 12


class QFormerConnector(nn.Module):
    """Features [n, tokens, width] to [n, queries, text]."""

    def __init__(self, p: QFormerParams, width: int, text: int) -> None:
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=p.width,
            num_hidden_layers=p.depth,
            num_attention_heads=p.heads,
            intermediate_size=4 * p.width,
            encoder_hidden_size=width,
        )
        self.queries = nn.Parameter(torch.randn(p.queries, p.width) * config.initializer_range)
        self.former = Blip2QFormerModel(config)
        self.out = nn.Linear(p.width, text)

    def forward(self, features: list[Tensor]) -> Tensor:
        seen = torch.cat(features, -1)
        queries = self.queries.expand(len(seen), -1, -1)
        return self.out(self.former(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state)


@register("connector", "qformer")
class QFormer(Connector):
    """BLIP-2's Q-Former."""

    Params = QFormerParams

    def build(self, widths: Widths) -> nn.Module:
        return QFormerConnector(self.params, fused_width(widths), widths.text)

    def tokens(self, widths: Widths) -> int:
        return self.params.queries
