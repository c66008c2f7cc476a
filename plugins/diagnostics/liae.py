"""Layer image attention entropy (D-LEAF, arXiv 2509.07864; our reconstruction, SPEC.md 7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from factory.data.prompt import Role
from factory.diagnose import Diagnostic, Query, Row
from factory.diagnose.summary import Finding, Summary, Table
from factory.instruments.focus import by_layer, liae
from factory.model.prefix import Prefix
from factory.model.view import ModelView
from factory.registry import register


@register("diagnostic", "liae")
class Liae(Diagnostic):
    """In every layer, the entropy in nats of the last token's attention over the image tokens, averaged over heads and
    renormalised.

    Metric ``LIAE`` by layer; NaN for a prompt without image. Cost beside the prefill: one pass of the last token.
    """

    by_prompt = ()
    pictured = True

    def on_prefix(
        self, view: ModelView, prefix: Prefix, query: Query, keys: Sequence[str], hidden: Tensor | None = None
    ) -> list[Row]:
        on = torch.cat([prefix.roles, query.roles], 1) == Role.IMAGE
        found = torch.stack(by_layer(view, prefix, query, on, liae)).tolist()
        return [
            Row(sample=key, metric="LIAE", layer=layer, head=None, value=value[i])
            for i, key in enumerate(keys)
            for layer, value in enumerate(found)
        ]

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        layers = sorted({r["layer"] for r in rows})
        means = [torch.tensor([r["value"] for r in rows if r["layer"] == layer]).nanmean().item() for layer in layers]
        least = layers[min(range(len(means)), key=means.__getitem__)]
        table = Table(
            "liae",
            "Layer image attention entropy",
            ("layer", "mean LIAE (nats)"),
            tuple(zip(layers, means, strict=True)),
        )
        text = (
            f"attention over the image is most concentrated in layer {least} ({min(means):.2f} nats) and most spread at"
            f" {max(means):.2f} nats"
        )
        return Summary("Where the model looks in the image (LIAE)", (Finding(text, values={"least": least}),), (table,))
