"""MoReS, modality linear representation steering (LLaVA Steering, arXiv 2412.12359, section 4; SPEC 6).

    MoReS(h) = W_up phi(h),   phi(h) = Linear(h) - W_down h,   W_down W_upᵀ = I          (equations 3, 4)
    h' = h + MoReS(h) on the output of every decoder block, for some of the image's tokens

As released, W_up = Rᵀ and W_down = R with R R^T = I (r x D), Linear(h) = W h + b: 2 D r + r parameters a layer. R is
the orthonormal form of a free r x D matrix A, so weight decay on A leaves it orthonormal. Ours: the identity start W =
R, b = 0 (``start: released`` has R and Linear random), and the dropout on what is added (the released code drops values
of the whole steered state). What is added to image tokens after the last block reaches no answer, so that block's
parameters are counted by the paper but learn nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from factory.errors import UserError
from factory.model.prefix import Step
from factory.model.view import ModelView
from factory.registry import Params, lookup, register
from factory.steer import Steering, Where
from factory.steer.subspace import orthonormal, steered_by
from factory.steer.where import spread
from factory.tune import Tuner
from factory.tune.places import Layers, chosen_layers
from factory.tune.roles import Roles

Share = Annotated[float, Field(gt=0, le=1)]
MODALITIES = {"vision": ("image",), "text": ("text",), "both": ("image", "text")}


class MoReSParams(Params):
    """``take`` is a ``Where`` choice among the modality's tokens: by default the first 4 and last 5, the paper's 1 % of
    729.

    ``ratio`` [low, high] replaces it by the dynamic ratio of table 9: in training each prompt draws its share of evenly
    spaced tokens from this range, in evaluation the middle is taken (how a share is drawn is not published; this is
    ours). ``modality: both`` has separate weights for each; ``share_weights: false`` has separate weights for each part
    of ``take``. ``layers``: all, shallow, middle, deep (table 11), every:K (table 10). ``orthonormal: false`` is the
    released variant without the constraint.

    ``rank`` r of the subspace; ``start``: at the identity, or random as released; ``dropout`` on what is added.
    """

    rank: PositiveInt = 1
    modality: Literal["vision", "text", "both"] = "vision"
    take: str = "first:4+last:5"
    ratio: tuple[Annotated[float, Field(ge=0, le=1)], Share] | None = None
    share_weights: bool = True
    layers: Layers = "all"
    orthonormal: bool = True
    start: Literal["identity", "released"] = "identity"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05

    @model_validator(mode="after")
    def _sound(self) -> MoReSParams:
        Where(take=self.take)
        if self.ratio and self.ratio[0] > self.ratio[1]:
            raise ValueError("ratio should be [low, high]")
        return self


class Subspace(nn.Module):
    """h [n, D] -> h + MoReS(h), computed in float32."""

    def __init__(self, D: int, params: MoReSParams, device: torch.device) -> None:
        super().__init__()
        r = params.rank
        self.constrained = params.orthonormal
        self.A = nn.Parameter(orthonormal(torch.randn(r, D, device=device)))
        self.W = nn.Parameter(self.R.detach().clone())
        self.b = nn.Parameter(torch.zeros(r, device=device))
        if params.start == "released":
            bound = D**-0.5
            nn.init.uniform_(self.W, -bound, bound)
            nn.init.uniform_(self.b, -bound, bound)
        self.dropout = nn.Dropout(params.dropout)

    @property
    def R(self) -> Tensor:
        """[r, D]; its rows are orthonormal unless the constraint is off."""
        return orthonormal(self.A.float()) if self.constrained else self.A.float()

    def forward(self, h: Tensor) -> Tensor:
        return self.dropout(steered_by(h.float(), self.R, self.W.float(), self.b.float()))


class Chosen:
    """Indices of the steered tokens, resolved once a forward for all layers."""

    def __init__(self, params: MoReSParams, where: Where, roles: Roles, view: ModelView) -> None:
        self.params, self.where, self.roles, self.view = params, where, roles, view
        self.known: tuple[Step | None, tuple[Tensor, ...]] = (None, ())

    def __call__(self) -> tuple[Tensor, ...]:
        step, (of, indices) = self.roles.step, self.known
        if step is not of:
            indices = self._mask(step).nonzero(as_tuple=True)
            self.known = (step, indices)  # at once: another thread may run another step
        return indices

    @property
    def indices(self) -> tuple[Tensor, ...]:
        """Those of the latest forward."""
        return self.known[1]

    def _mask(self, step: Step) -> Tensor:
        if step.generated:
            return torch.zeros_like(step.roles, dtype=torch.bool)
        if self.where.role != "image" and not self.roles.words_known:
            raise UserError(
                "mores on text needs to know the prompt's words: encode prompts with view.encode, or give the batch's"
                " `roles`"
            )
        if self.params.ratio is None:
            return self.where.mask(step.roles)
        low, high = self.params.ratio
        tokens = Where(role=self.where.role).mask(step.roles)
        drawn = torch.rand(len(tokens), 1, device=tokens.device) if self.view.model.training else 0.5
        return spread(tokens, (tokens.sum(-1, keepdim=True) * (low + (high - low) * drawn)).ceil().long())


@register("tuner", "mores")
class MoReS(Tuner):
    """Linear steering of image tokens in a subspace, at every layer."""

    Params = MoReSParams
    inside_blocks = False
    learning_rate = 2e-4
    sweep = (2e-4, 5e-4, 1e-3, 3e-3, 1e-2)

    def insert(self, view: ModelView, roles: Roles) -> Iterable[nn.Parameter]:
        sites = {f"mores_{where.role}{i or ''}": Chosen(self.params, where, roles, view) for i, where in self._wheres()}
        layers = chosen_layers(self.params.layers, view.depth)
        self._placed = [(layer, name, sites[name]) for layer in layers for name in sites]
        return [p for placed in self._placed for p in self._place(view, *placed).parameters()]

    def _wheres(self) -> list[tuple[int, Where]]:
        p = self.params
        takes = [p.take] if p.share_weights else p.take.split("+")
        return [
            (i, Where(role=role, take=take, generated=False))
            for role in MODALITIES[p.modality]
            for i, take in enumerate(takes)
        ]

    def _place(self, view: ModelView, layer: int, name: str, chosen: Chosen) -> Subspace:
        block = view.layers[layer]
        subspace = self.attach(block, name, Subspace(view.width, self.params, view.device))
        self.keep(block.register_forward_hook(partial(_steer, subspace, chosen)))
        return subspace

    def steerings(self, view: ModelView) -> list[Steering]:
        """The trained method as steerings of ``factory.steer``, one a site, for the model without this tuner; each can
        be kept as an artefact.
        """
        if self.params.ratio is not None:
            raise UserError("mores with a dynamic ratio has no fixed token choice; steer with the tuner itself")
        cls = lookup("steering", "mores")
        made = []
        for layer, name, chosen in self._placed:
            subspace: Subspace = getattr(view.layers[layer], name)
            state = {"R": subspace.R, "W": subspace.W, "b": subspace.b}
            state = {key: value.detach().float().clone() for key, value in state.items()}
            made.append(
                Steering(
                    cls(cls.Params(rank=self.params.rank)), state, chosen.where.model_copy(update={"layer": layer})
                )
            )
        return made


def _steer(
    subspace: Subspace, chosen: Callable[[], tuple[Tensor, ...]], block: nn.Module, args: tuple, h: Tensor
) -> Tensor:
    at = tuple(index.to(h.device) for index in chosen())
    return h.index_put(at, subspace(h[at]).to(h.dtype), accumulate=True)
