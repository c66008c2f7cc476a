"""What attention and MLP do to the decision at instruction tokens (Instruction Anchor, arXiv 2602.03677, sec. 4.1, eq.
7 and 8; SPEC section 5).

With h^l = h^{l-1} + a^l + m^l, f_S of eq. 5 and the margin M = f_C - f_X:

    dAttn^l_g = g(h^{l-1} + a^l) - g(h^{l-1})       dMLP^l_g = g(h^l) - g(h^{l-1} + a^l)       g in {f_C, f_X, M}    (7,
    8)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from factory.diagnose.summary import Summary
from factory.instruments.instructed import Anchor, Asked, Reading
from factory.model.view import ModelView
from factory.registry import register

from .summary import summarise


@register("diagnostic", "attribution")
class Attribution(Reading):
    """How far attention and MLP move each answer's belief and the margin at instruction tokens (Instruction Anchor, eq.
    7 and 8).

    Rows by layer: ``attention_`` and ``mlp_`` with ``comply``, ``compete`` and ``margin``.
    """

    def read(self, view: ModelView, asked: Asked, anchor: Anchor) -> dict[str, Tensor]:
        return attributions(view, asked, anchor, self.params.k, self.params.pool)

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params)


@torch.no_grad()
def attributions(
    view: ModelView, asked: Asked, anchor: Anchor, k: int, pool: Literal["max", "mean"] = "max"
) -> dict[str, Tensor]:
    """Each metric [layers, B]."""
    f, r = anchor.reader(view, asked, k, pool), anchor.found
    steps: dict[str, list[Tensor]] = {
        f"{part}_{what}": [] for part in ("attention", "mlp") for what in ("comply", "compete", "margin")
    }
    for before, a, after in zip(r.before, r.attention, r.after, strict=True):
        states = [torch.stack(f(h[:, :-1])) for h in (before, before + a, after)]
        for part, (low, high) in zip(("attention", "mlp"), pairwise(states), strict=True):
            d_C, d_X = high - low
            for what, value in (("comply", d_C), ("compete", d_X), ("margin", d_C - d_X)):
                steps[f"{part}_{what}"].append(value)
    return {name: torch.stack(values) for name, values in steps.items()}
