"""Image attention focus (D-LEAF, arXiv 2509.07864, after PAI; our reconstruction, SPEC.md 7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from factory.data.prompt import Role
from factory.diagnose import Diagnostic, Query, Row
from factory.diagnose.summary import Finding, Summary, Table
from factory.instruments.focus import by_layer, iaf
from factory.model.prefix import Prefix
from factory.model.view import ModelView
from factory.registry import register

SHOWN = 10


@register("diagnostic", "iaf")
class Iaf(Diagnostic):
    """Each head's attention mass on the image tokens, from the last token.

    Metric ``IAF`` by layer and head, 0 for a prompt without image. Cost beside the prefill: one pass of the last token.
    """

    by_prompt = ()
    pictured = True

    def on_prefix(
        self, view: ModelView, prefix: Prefix, query: Query, keys: Sequence[str], hidden: Tensor | None = None
    ) -> list[Row]:
        on = torch.cat([prefix.roles, query.roles], 1) == Role.IMAGE
        found = torch.stack(by_layer(view, prefix, query, on, iaf)).tolist()
        return [
            Row(sample=key, metric="IAF", layer=layer, head=head, value=value)
            for i, key in enumerate(keys)
            for layer, rows in enumerate(found)
            for head, value in enumerate(rows[i])
        ]

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        heads: dict[tuple[int, int], list[float]] = {}
        for r in rows:
            heads.setdefault((r["layer"], r["head"]), []).append(r["value"])
        best = sorted(((fmean(v), *head) for head, v in heads.items()), reverse=True)[:SHOWN]
        table = Table(
            "iaf",
            "Heads that look at the image most",
            ("layer", "head", "mean IAF"),
            tuple((layer, head, mass) for mass, layer, head in best),
        )
        mass, layer, head = best[0]
        text = (
            f"head {head} of layer {layer} gives {mass:.0%} of its attention to the image; the mean head"
            f" {fmean(fmean(v) for v in heads.values()):.0%}"
        )
        return Summary(
            "Which heads look at the image (IAF)",
            (Finding(text, values={"layer": layer, "head": head, "mass": mass}),),
            (table,),
        )
