"""Internal belief at instruction tokens (Instruction Anchor, arXiv 2602.03677, sec. 3.1 and 3.3, eq. 1, 5, 6; SPEC
section 5).

    z_S^l(t) = max_{e in E_S} [W_U norm(h_t^l)]_{tok1(e)}                                  (1)
    f_S(h^l) = mean of z_S^l(t) over I_k, the k instruction tokens with the largest z_S   (5)
    LDAR_l   = mean over samples of 1[sign(f_C - f_X) agrees with the final answer]       (6)

The paper's k is lost in our copy; app. E.1 finds that it matters little. Maximum or mean over the forms is an option
(app. E.1). Only instruction tokens and the last one are read, and only at the dictionary's columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from factory.diagnose.summary import Summary
from factory.instruments.instructed import Anchor, Asked, Reading
from factory.instruments.lens import Readout
from factory.model.view import ModelView
from factory.registry import register

from .summary import summarise


@register("diagnostic", "logit_lens")
class LogitLens(Reading):
    """Logit-lens belief at instruction tokens by layer, and its agreement with the answer (LDAR; Instruction Anchor,
    eq. 5 and 6).

    Rows by layer: ``f_comply``, ``f_compete``, and ``synchronised`` (1 where instruction tokens and the last token lean
    the same way).
    """

    def read(self, view: ModelView, asked: Asked, anchor: Anchor) -> dict[str, Tensor]:
        return beliefs(view, asked, anchor, self.params.k, self.params.pool)

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params)


@torch.no_grad()
def beliefs(
    view: ModelView, asked: Asked, anchor: Anchor, k: int, pool: Literal["max", "mean"] = "max"
) -> dict[str, Tensor]:
    """Each metric [layers, B] (eq. 5), after each block."""
    at_instruction = anchor.reader(view, asked, k, pool)
    at_last = Readout(view, torch.ones_like(anchor.mask[:, :1]), asked.comply, asked.compete, 1, pool)
    out: dict[str, list[Tensor]] = {"f_comply": [], "f_compete": [], "synchronised": []}
    for h in anchor.found.after:
        f_C, f_X = at_instruction(h[:, :-1])
        out["f_comply"].append(f_C)
        out["f_compete"].append(f_X)
        out["synchronised"].append(((f_C > f_X) == (at_last.margin(h[:, -1:]) > 0)).float())
    return {name: torch.stack(values) for name, values in out.items()}
