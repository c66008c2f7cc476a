"""Mean steering (Mean-S of learn-to-steer; "static" in AMPS): one vector for all inputs."""

from torch import Tensor

from factory.registry import register
from factory.steer import Context, States, Steerer


@register("steering", "static")
class Static(Steerer):
    """The mean difference v = E[h_[I,T,P+] - h_[I,T,P-]], added alike to every input."""

    def fit(self, states: States) -> dict[str, Tensor]:
        return {"v": (states.toward - states.away).mean(0)}

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        return state["v"].expand_as(h)
