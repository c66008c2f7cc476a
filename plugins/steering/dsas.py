"""DSAS: a learned gate on any steering method (arXiv 2512.03661). SPEC.md 8.

    h_l(t) = sigmoid(w . PCA(t) + b);      t <- t + lambda h_l(t) (T_l(t) - t)

From secondary sources: a logistic regression per layer on PCA of the activations (5 components), trained to tell the
inputs that need steering (source set S) from those that do not (control set C), used per token as the multiplier of any
steering map. Ours: S are the training prompts that do not follow the wanted modality without steering, C those that do
(found by answering them once unsteered); the regression is fitted on the last prompt token's state, where the source
takes the mean over the sequence; its classes are balanced. The source steers only layers whose classifier reaches 0.75;
a run of this project steers one layer and keeps the classifier's accuracy with the artefact instead. The end-to-end
variant with LinEAS is not here.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from factory.errors import UserError
from factory.recipe.nodes import Node, plugin, read_node
from factory.registry import register
from factory.steer import Context, Steerer, Trials
from factory.steer.around import Around, AroundParams
from factory.steer.gate import fit_gate

Tensors = dict[str, Tensor]


class DsasParams(AroundParams):
    """``of`` the gated method; ``gate`` per token (the source) or once per prompt, on its last token (ours);
    ``components`` of the PCA; ``ridge`` the penalty on the regression's weights."""

    of: Annotated[Node, plugin("steering")] = Field(default_factory=lambda: read_node("steering", "static"))
    gate: Literal["token", "prompt"] = "token"
    components: PositiveInt = 5
    ridge: float = Field(1e-2, gt=0)

    @classmethod
    def check(cls, inner: Steerer) -> None:
        if isinstance(inner, Dsas):
            raise UserError("dsas does not gate itself")


@register("steering", "dsas")
class Dsas(Around):
    """Another method's vectors, each scaled by how much the state looks like one that does not follow yet."""

    Params = DsasParams

    def __init__(self, params: DsasParams) -> None:
        super().__init__(params)
        if params.gate == "token":
            self.reads = "per_token"

    @property
    def trial_strengths(self) -> tuple[float, ...]:
        return (0.0, *self.inner.trial_strengths)

    def look(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        seen = self.inner.look(h, state, ctx) if self.inner.trial_strengths else h.new_zeros(len(h), 0, 1)
        return torch.cat([seen.new_zeros(len(h), 1, seen.shape[-1]), seen], 1)

    def calibrate(self, state: Tensors, trials: Trials) -> Tensors:
        inner = replace(trials, follow=trials.follow[:, 1:], error=trials.error[:, 1:], looks=trials.looks[:, 1:])
        if self.inner.trial_strengths:
            state = self.inner.calibrate(state, inner)
        gate = fit_gate(trials.base, ~trials.follow[:, 0], self.params.components, self.params.ridge)
        return {**state, **{f"dsas.{k}": t for k, t in gate.items()}}

    def delta(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        vectors = super().delta(h, state, ctx)
        return self._gate(h, state)[:, None] * vectors if self.params.gate == "token" else vectors

    def gain(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        gain = self.inner.gain(h, state, ctx)
        return gain if self.params.gate == "token" else self._gate(h, state) * gain

    def _gate(self, h: Tensor, state: Tensors) -> Tensor:
        """h_l(t) [rows]; 1 before it is calibrated."""
        if "dsas.w" not in state:
            return h.new_ones(len(h))
        return torch.sigmoid(h @ state["dsas.w"] + state["dsas.b"])
