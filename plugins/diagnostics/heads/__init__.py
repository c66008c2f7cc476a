"""Which heads settle the conflict (Instruction Anchor, arXiv 2602.03677, sec. 4.1, eq. 9; SPEC section 5), and what
silencing each one does.

    dM^{l,n} = M(h^{l-1} + o^{l,n}) - M(h^{l-1})      o^{l,n}: head n's slice of the attention output through W_O
    (9)

M = f_C - f_X is read at the instruction tokens (eq. 5). The heads are ranked by the mean of dM over the prompts that
follow. Beside this attribution stands a causal map (ours): NSSD (eq. 4) of silencing each head at the last position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from factory.diagnose.summary import Summary
from factory.instruments.instructed import Anchor, Asked, Reading
from factory.instruments.lens import restricted_logits
from factory.instruments.nssd import KL, nssd
from factory.instruments.silence import silenced
from factory.model.prefix import at_last
from factory.model.view import ModelView
from factory.registry import register

from .summary import summarise


@register("diagnostic", "heads")
class Heads(Reading):
    """Each attention head's part in the margin at instruction tokens, ranked (Instruction Anchor, eq. 9), and a
    single-head knockout map.

    Rows by layer and head: ``head_margin`` (eq. 9), and ``head_nssd`` where ``map`` is on. It also looks at training
    samples, on which the steering method ``heads`` chooses.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    class Params(Reading.Params):
        """``map``: also silence each head at the last position. ``top``: how many heads of each direction are compared
        for their overlap.

        ``kl``: KL(before || after) or the reverse, for the map.
        """

        map: bool = True
        kl: KL = "before_after"
        top: PositiveInt = 40

    def read(self, view: ModelView, asked: Asked, anchor: Anchor) -> dict[str, Tensor]:
        p = self.params
        maps = {"head_margin": head_margins(view, asked, anchor, p.k, p.pool)} | (
            {"head_nssd": self.silence(view, asked)} if p.map else {}
        )
        return {metric: values.movedim(0, -1) for metric, values in maps.items()}

    def silence(self, view: ModelView, asked: Asked) -> Tensor:
        """NSSD [B, layers, heads] of silencing each head at the last position."""
        return knockout_map(view, asked, self.params.kl)

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params)


@torch.no_grad()
def head_margins(view: ModelView, asked: Asked, anchor: Anchor, k: int, pool: Literal["max", "mean"] = "max") -> Tensor:
    """dM [B, layers, heads] (eq. 9)."""
    f, r = anchor.reader(view, asked, k, pool), anchor.found
    layers = []
    for i, before in enumerate(r.before):
        h = before[:, None, :-1]
        o = r.head_outputs(view, i)[:, :-1].transpose(1, 2)
        layers.append(f.margin(h + o) - f.margin(h))
    return torch.stack(layers, 1)


@torch.no_grad()
def knockout_map(view: ModelView, asked: Asked, kl: KL = "before_after") -> Tensor:
    """NSSD [B, layers, heads] of silencing each head at the last position."""
    stem = asked.stem
    after = restricted_logits(view, silenced(view, stem), asked.comply, asked.compete)
    before = restricted_logits(
        view, at_last(stem.hidden, stem.batch.attention_mask)[:, None, None], asked.comply, asked.compete
    )
    complies = torch.arange(after.shape[-1], device=after.device) < asked.comply.shape[1]
    return nssd(before, after, complies, kl)
