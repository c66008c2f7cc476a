"""AMPS: Adaptive Modality Preference Steering via Functional Entropy. Equations 9-14; options are those of SPEC.md
1.4.

    s = 1 + beta (r - rbar) / rbar                      (10), as A1 has it; rbar: the mean ratio of the task
    v = s (h_[I,T,P+] - h_[I,T,P-])                     (12)
    Theta* = argmin E || v - g_Theta(h_[I,T]) ||^2      (13)
    h <- h + alpha g_Theta*(h)                          (14), alpha the strength
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from factory.registry import Params, lookup, register
from factory.steer import Context, States, Steerer
from factory.steer.base import needs
from factory.steer.places import ApplyTo, place
from factory.steer.regressor import RegressorParams, fit_g, g
from factory.steer.where import Where


class AmpsParams(Params):
    """Options A1-A4 and A13; ``beta_policy: dev_select`` (ours, for A2's unclear sign) picks beta from ``betas`` on dev
    data.

    ``clip`` (ours) bounds s on the scale of one_plus. With beta = 0 the fit is learn-to-steer's to the last bit.

    ``beta`` scales each training target by its sample's ratio; ``beta_policy`` fixes it or lets dev choose among
    ``betas``. ``scale_form`` is how equation 10 enters equation 12 (A1); ``anchor``: what a ratio is compared with
    (A4); ``ratio`` and ``text_mode``: what steers toward the text (A3). ``net`` is the trained network g;
    ``predict_from``: which token it reads, ``apply_to``: which tokens get the vector (A13).
    """

    beta: float = 0.5
    beta_policy: Literal["dev_select", "fixed"] = "dev_select"
    betas: tuple[float, ...] = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
    scale_form: Literal["one_plus", "literal"] = "one_plus"
    anchor: Literal["task", "global", "ema"] = "task"
    ratio: Literal["r_target", "r_v"] = "r_target"
    text_mode: Literal["separate_module", "negate_alpha"] = "separate_module"
    clip: tuple[float, float] | None = (0.0, 2.0)
    net: RegressorParams = RegressorParams()
    predict_from: Literal["last_prompt", "per_token"] = "last_prompt"
    apply_to: ApplyTo = "all"


@register("steering", "amps")
class Amps(Steerer):
    """h + alpha * g(h) with g trained on v = s * (h_[I,T,P+] - h_[I,T,P-]), s from each sample's modality contribution
    ratio.
    """

    Params = AmpsParams

    def __init__(self, params: AmpsParams) -> None:
        super().__init__(params)
        self.reads = params.predict_from

    def unfit(self, diagnostic: str | None, diagnostics: Sequence[str]) -> str | None:
        given = lookup("diagnostic", diagnostic).by_prompt if diagnostic else ()
        return None if given is None or "R_V" in given else needs("R_V", self.name, by="mcr")

    def where(self) -> Where:
        return place(self.params.apply_to)

    def variants(self) -> dict[str, Steerer]:
        if self.params.beta_policy == "fixed":
            return {}
        return {
            f"beta={b:g}": Amps(self.params.model_copy(update={"beta": b, "beta_policy": "fixed"}))
            for b in self.params.betas
        }

    @property
    def net(self) -> RegressorParams:
        return self.params.net

    def targets(self, states: States) -> Tensor:
        """v of eq. 12 [n, d]."""
        d, _ = deviation(self._ratio(states), states.tasks, self.params.anchor)
        return self._scale(d)[:, None] * (self._sign(states) * (states.toward - states.away))

    def fit(self, states: States) -> dict[str, Tensor]:
        _, r_bar = deviation(self._ratio(states), states.tasks, self.params.anchor)
        theta = fit_g(states.base, self.targets(states), self.net, states.seed, states.tasks)  # eq. 13
        sign = torch.tensor(self._sign(states))
        return {**theta, "sign": sign, **{f"anchor.{task}": r for task, r in r_bar.items()}}

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        return state["sign"] * g(state, h, self.params.net.activation)  # eq. 14

    def own_scale(self, states: States, state: dict[str, Tensor]) -> Tensor:
        """s of eq. 10 [n] by each prompt's own ratio, against the anchors of the training split."""
        r_bar = torch.stack([state.get(f"anchor.{task}", state["anchor.all"]) for task in states.tasks])
        return self._scale(relative(self._ratio(states), r_bar))

    def _sign(self, states: States) -> float:
        """-1 where the text direction is the vision module taken backwards (A3: negate_alpha)."""
        return -1.0 if not states.toward_first and self.params.text_mode == "negate_alpha" else 1.0

    def _ratio(self, states: States) -> Tensor:
        r_v = states.number(f"R_{states.sources.first.letter}", self.name, by="mcr")
        towards_text = (
            not states.toward_first and self.params.text_mode == "separate_module" and self.params.ratio == "r_target"
        )
        return 1 - r_v if towards_text else r_v

    def _scale(self, d: Tensor) -> Tensor:
        """s = 1 + beta d (A1, one_plus), or eq. 10 in eq. 12 as printed: 1 + gamma = 2 + beta d = 2 (1 + beta/2 d)."""
        factor, beta = (1.0, self.params.beta) if self.params.scale_form == "one_plus" else (2.0, self.params.beta / 2)
        s = 1 + beta * d
        return factor * (s if self.params.clip is None else s.clamp(*self.params.clip))


def deviation(r: Tensor, tasks: Sequence[str], anchor: str) -> tuple[Tensor, dict[str, Tensor]]:
    """d = (r - r_bar) / r_bar of eq. 10 for each sample, and the anchors r_bar, by task and "all" (A4)."""
    r_bar = {"all": r.mean()}
    if anchor == "ema":
        running, anchors = r[0], []
        for value in r:
            running = 0.9 * running + 0.1 * value
            anchors.append(running)
        return relative(r, torch.stack(anchors)), r_bar
    if anchor == "task":
        for task in dict.fromkeys(tasks):
            r_bar[task] = r[torch.tensor([t == task for t in tasks])].mean()
    per_sample = torch.stack([r_bar.get(task, r_bar["all"]) for task in tasks])
    return relative(r, per_sample), r_bar


def relative(r: Tensor, anchor: Tensor) -> Tensor:
    """(r - anchor) / anchor; 0 where they are equal, as where every ratio of a task is 0 and so is its mean."""
    return torch.where(r == anchor, 0.0, (r - anchor) / anchor)
