"""MACI: heads that drive the wrong modality are suppressed where a conflict is seen (arXiv 2605.19250).

    e^{l,n} = E[M(silenced o^{l,n}) - M]        M = z_x - z_y: x the wanted answer, y the other
    D       = the k heads of largest e > 0, which drive y
    o^{l,n} <- (1 - s (1 - c) 1[g(h) > tau]) o^{l,n},   (l,n) in D, at the last prompt token and the answer's

From the abstract alone: heads that drive the error are found causally, and suppressed only when a conflict is detected.
Reconstructed (ours): single heads silenced in place of path patching (diagnostic `silencing`); the detector g, logistic
regression on the state h_[I,T] at the run's layer, of training conflicts against the same prompts without a conflict;
tau, the score that at most a share of the dev prompts without a conflict exceeds; that only heads above that layer are
suppressed, at the tokens where they were silenced. Strength s is chosen on dev as every method's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from factory.errors import UserError
from factory.instruments.heads import SILENCED, HeadScaler, choose_heads, coefficients, scores
from factory.registry import Params, register
from factory.steer import Context, States
from factory.steer.gate import fit_gate
from factory.steer.where import Where

LACKING = "steering 'maci' chooses heads by what silencing each does: add `silencing` to the recipe's `diagnostics:`"


class MaciParams(Params):
    """``top``: most heads k; ``coefficient`` c that they are scaled by at strength 1, strength s scales by
    1 - s (1 - c); ``conditional``: only where a conflict is detected; ``false_alarms``: the most prompts without a
    conflict that the detector may take for one; ``components`` of its PCA, ``ridge`` the penalty on its weights.
    """

    top: PositiveInt = 8
    coefficient: float = Field(0.0, ge=0, lt=1)
    conditional: bool = True
    false_alarms: float = Field(0.05, gt=0, lt=1)
    components: PositiveInt = 32
    ridge: float = Field(1e-2, gt=0)


@register("steering", "maci")
class Maci(HeadScaler):
    """Heads that drive the other modality are scaled down, in prompts whose state shows a conflict (MACI,
    reconstructed).
    """

    Params = MaciParams

    def __init__(self, params: MaciParams) -> None:
        super().__init__(params, "all", True)
        self.reads_agreeing = params.conditional

    def unfit(self, diagnostic: str | None, diagnostics: Sequence[str]) -> str | None:
        return None if "silencing" in diagnostics else LACKING

    def where(self) -> Where:
        return super().where().model_copy(update={"take": "last:1"})

    def placed(self, state: dict[str, Tensor], layer: int) -> Where:
        decided = layer if self.params.conditional else None
        return super().placed(state, layer).model_copy(update={"decided": decided})

    def fit(self, states: States) -> dict[str, Tensor]:
        """Raises ``UserError`` where no head was silenced on the training split."""
        e = scores(states.found, states.direction, SILENCED).nan_to_num()
        if not e.numel():
            raise UserError(f"{LACKING}; it looks at heads above the run's layer alone")
        D = [head for head in choose_heads({states.direction: e}, states.direction, self.params.top) if e[head] > 0]
        state = coefficients(D, self.params.coefficient, tuple(e.shape))
        return {**state, **self._detector(states)} if self.params.conditional else state

    def _detector(self, states: States) -> dict[str, Tensor]:
        p, calm, held_out = self.params, states.agreeing["train"], states.agreeing["dev"]
        conflict = torch.arange(len(states.base) + len(calm)) < len(states.base)
        g = fit_gate(torch.cat([states.base, calm]), conflict, p.components, p.ridge)
        told = (held_out @ g["w"] + g["b"]).sort().values
        rank = min(len(told), math.ceil((len(told) + 1) * (1 - p.false_alarms)))
        return {"detector.w": g["w"], "detector.b": g["b"], "detector.tau": told[rank - 1]}

    def gain(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        """1[g(h) > tau] [rows]."""
        if not self.params.conditional:
            return super().gain(h, state, ctx)
        return (h @ state["detector.w"] + state["detector.b"] > state["detector.tau"]).to(h.dtype)
