"""MSRS: Multi-Subspace Representation Steering (arXiv 2508.10599). SPEC.md 7.4.

    tau_i            the activation differences of attribute i, one row per prompt
    B_shared         leading right singular vectors of [tau_1; ..; tau_n] with at least 60 % of the energy
    B_i              leading right singular vectors of tau_i - tau_i B_shared^T B_shared;   S_align = [B_shared; B_1;
    ..; B_n]
    Phi(h) = h + R^T diag(m(h)) (W h + b - R h),   m(h) = sigmoid(MLP(h)),   R started at S_align
    L = L_task + l1 |m(h) - prior|^2 + l2 (1 - <R, S_align> / (|R| |S_align|))
    token p_i = argmax_t |R_i^T R_i h_t|

From secondary sources on v3: shared and private subspaces, the 60 %, Phi and the three losses, the token choice (v4
drops it). Ours, where no source says or the printed shapes do not fit: tau_i are differences of single prompts, so that
the SVDs have something to find; the attributes, among them several at once that pull apart (the prompts of some tasks
toward the direction, those of others away from it); the prior mask (1 on the shared dimensions and those of the
prompt's own attribute); ranks, l1, l2, learning rate; and L_task, which is learn-to-steer's: Phi(h_[I,T]) - h_[I,T]
should be v = h_[I,T,P+] - h_[I,T,P-] (the authors train through the language model). W starts as R and b as 0, so that
training begins at Phi(h) = h.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from factory.errors import UserError
from factory.registry import Params, register
from factory.steer import Context, States, Steerer
from factory.steer.where import Where

Tensors = dict[str, Tensor]


class Attribute(Params):
    """What the prompts of some ``tasks`` are steered ``toward``: the direction that is asked for, or the other one."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    toward: Literal["direction", "other"] = "direction"


class MsrsParams(Params):
    """``attributes``: ``direction_and_form`` steers along the modality and holds still what any instruction changes
    (its form); ``tasks`` takes the modality's direction in each task as an attribute; a list has each attribute's own
    ``tasks`` and where they are steered, and prompts of no attribute are not fitted on. ``energy`` of the shared
    subspace, at most ``shared_rank`` dimensions, ``private_rank`` of each private one; ``tokens``: every prompt token,
    or for each attribute the one that lies most in its subspace (v3).

    ``hidden`` units of the mask's network; ``mask_weight`` is l1 and ``align_weight`` l2 of the loss; Adam at
    ``learning_rate`` for ``epochs`` steps over all prompts.
    """

    attributes: Literal["direction_and_form", "tasks"] | Annotated[tuple[Attribute, ...], Field(min_length=1)] = (
        "direction_and_form"
    )
    energy: float = Field(0.6, gt=0, le=1)
    shared_rank: PositiveInt = 8
    private_rank: PositiveInt = 4
    tokens: Literal["all", "argmax"] = "all"
    hidden: PositiveInt = 64
    mask_weight: float = Field(0.1, ge=0)
    align_weight: float = Field(0.1, ge=0)
    learning_rate: PositiveFloat = 1e-2
    epochs: PositiveInt = 300


@register("steering", "msrs")
class Msrs(Steerer):
    """Several attributes in orthogonal subspaces, a shared one beside, weighed for each state by a learned mask."""

    Params = MsrsParams
    reads = "per_token"

    def where(self) -> Where:
        return Where()

    def attributes(self, states: States) -> tuple[list[Tensor], Tensor, Tensor]:
        """tau_i [n_i, d] of every attribute, which attribute each prompt's own movement belongs to [n] (-1: none), and
        that movement v [n, d]. Raises ``UserError`` for an attribute whose tasks have no training prompt.
        """
        D, told = states.toward - states.away, self.params.attributes
        if told == "direction_and_form":
            form = (states.toward + states.away) / 2 - states.base
            return [D, form], torch.zeros(len(D), dtype=torch.long), D
        if isinstance(told, str):
            told = tuple(Attribute(tasks=(task,)) for task in dict.fromkeys(states.tasks))
        own = torch.tensor([next((i for i, a in enumerate(told) if t in a.tasks), -1) for t in states.tasks])
        for i, attribute in enumerate(told):
            if not (own == i).any():
                there = f"There are: {', '.join(dict.fromkeys(states.tasks))}"
                raise UserError(
                    f"msrs: attributes.{i}: no training prompt is of {', '.join(attribute.tasks)}, or an attribute"
                    f" before it has them. {there}"
                )
        sign = torch.tensor([-1.0 if a.toward == "other" else 1.0 for a in told])
        v = sign[own.clamp_min(0)][:, None] * D
        return [v[own == i] for i in range(len(told))], own, v

    def fit(self, states: States) -> Tensors:
        tau, own, v = self.attributes(states)
        S_align, part = subspaces(tau, self.params.energy, self.params.shared_rank, self.params.private_rank)
        prior = ((part == -1) | (part == own[:, None])).float()  # [n, r]
        theta = self._start(S_align, states.seed)
        fitted = own >= 0
        h, v, prior = states.base[fitted], v[fitted], prior[fitted]
        optimizer = torch.optim.Adam(theta.values(), lr=self.params.learning_rate)
        with torch.enable_grad():
            for _ in range(self.params.epochs):
                optimizer.zero_grad()
                task = F.mse_loss(moved(h, theta), v)
                align = 1 - (theta["R"] * S_align).sum() / (theta["R"].norm() * S_align.norm())
                loss = (
                    task
                    + self.params.mask_weight * F.mse_loss(mask(h, theta), prior)
                    + self.params.align_weight * align
                )
                loss.backward()
                optimizer.step()
        return {**{k: t.detach() for k, t in theta.items()}, "part": part}

    def _start(self, S_align: Tensor, seed: int) -> Tensors:
        (r, d), H, rng = S_align.shape, self.params.hidden, torch.Generator().manual_seed(seed)
        theta = {
            "R": S_align.clone(),
            "W": S_align.clone(),
            "b": torch.zeros(r),
            "mask.in": torch.randn(d, H, generator=rng) * d**-0.5,
            "mask.bias": torch.zeros(H),
            "mask.out": torch.randn(H, r, generator=rng) * H**-0.5,
            "mask.prior": torch.zeros(r),
        }
        return {k: t.requires_grad_() for k, t in theta.items()}

    def choose(self, h: Tensor, chosen: Tensor, state: Tensors) -> Tensor:
        """p_i = argmax_t |R_i^T R_i h_t| for each attribute i, among the ``chosen`` tokens."""
        if self.params.tokens == "all":
            return chosen
        picked = torch.zeros_like(chosen)
        for i in state["part"].unique():
            if i >= 0:
                R_i = state["R"][state["part"] == i]
                size = (h.float() @ R_i.T @ R_i).norm(dim=-1).masked_fill(~chosen, -1.0)
                picked |= F.one_hot(size.argmax(-1), h.shape[1]).bool()
        return picked & chosen

    def delta(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        return moved(h, state)


def mask(h: Tensor, theta: Tensors) -> Tensor:
    """m(h) [rows, r], the weight of each dimension of R."""
    return torch.sigmoid(
        torch.tanh(h @ theta["mask.in"] + theta["mask.bias"]) @ theta["mask.out"] + theta["mask.prior"]
    )


def moved(h: Tensor, theta: Tensors) -> Tensor:
    """Phi(h) - h [rows, d]."""
    return (mask(h, theta) * (h @ theta["W"].T + theta["b"] - h @ theta["R"].T)) @ theta["R"]


def subspaces(tau: list[Tensor], energy: float, shared_rank: int, private_rank: int) -> tuple[Tensor, Tensor]:
    """S_align [r, d] with orthonormal rows, and the part of each row [r]: -1 shared, else the attribute's number.

    Each private subspace is sought in what the shared and all earlier ones leave, so that no two overlap.
    """
    basis = leading(torch.cat([t / t.norm().clamp_min(1e-12) for t in tau]), energy, shared_rank)
    part = [-1] * len(basis)
    for i, t in enumerate(tau):
        own = leading(t - t @ basis.T @ basis, 1.0, private_rank)
        basis, part = torch.cat([basis, own]), part + [i] * len(own)
    return basis, torch.tensor(part)


def leading(x: Tensor, energy: float, rank: int) -> Tensor:
    """The fewest leading right singular vectors [r, d] that hold ``energy`` of x [n, d], at most ``rank``; none of no
    size.
    """
    _, size, V = torch.linalg.svd(x, full_matrices=False)
    share = size.square().cumsum(0) / size.square().sum().clamp_min(1e-30)
    r = min(rank, int((share < energy - 1e-6).sum()) + 1, int((size > 1e-5 * max(1.0, float(x.norm()))).sum()))
    return V[:r]
