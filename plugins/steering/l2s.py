"""Learn-to-Steer (Parekh et al., NeurIPS 2025, arXiv 2508.12815): an input-dependent vector, one strength for all.

Theta* = argmin E || (h_[I,T,P+] - h_[I,T,P-]) - g_Theta(h_[I,T]) ||^2
h <- h + alpha g_Theta*(h)                          alpha: the strength
"""

from typing import Literal

from torch import Tensor

from factory.registry import Params, register
from factory.steer import Context, States, Steerer
from factory.steer.places import ApplyTo, place
from factory.steer.regressor import RegressorParams, fit_g, g
from factory.steer.where import Where


class L2SParams(Params):
    """``predict_from`` and ``apply_to`` are SPEC A13; the defaults are the released code's.

    ``net`` is the trained network g.
    """

    net: RegressorParams = RegressorParams()
    predict_from: Literal["last_prompt", "per_token"] = "last_prompt"
    apply_to: ApplyTo = "all"


@register("steering", "l2s")
class LearnToSteer(Steerer):
    """h + alpha * g(h) with g trained on v = h_[I,T,P+] - h_[I,T,P-]."""

    Params = L2SParams
    yardstick = True

    def __init__(self, params: L2SParams) -> None:
        super().__init__(params)
        self.reads = params.predict_from

    def where(self) -> Where:
        return place(self.params.apply_to)

    @property
    def net(self) -> RegressorParams:
        return self.params.net

    def targets(self, states: States) -> Tensor:
        return states.toward - states.away

    def fit(self, states: States) -> dict[str, Tensor]:
        return fit_g(states.base, self.targets(states), self.net, states.seed, states.tasks)

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        return g(state, h, self.params.net.activation)
