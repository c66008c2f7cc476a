"""Where a steering vector is added: which layer, which tokens of the prompt, and whether to the answer's tokens."""

from __future__ import annotations

import re
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from factory.data.prompt import USER_TEXT, Role

RoleName = Literal[
    "all",
    "image",
    "text",
    "context",
    "context_a",
    "context_b",
    "question",
    "options",
    "instruction",
    "template",
    "none",
]
ROLES: dict[str, tuple[Role, ...]] = {
    "all": tuple(r for r in Role if r != Role.PAD),
    "image": (Role.IMAGE,),
    "text": USER_TEXT,
    "context": (Role.CONTEXT,),
    "context_a": (Role.CONTEXT_A,),
    "context_b": (Role.CONTEXT,),
    "question": (Role.QUESTION,),
    "options": (Role.OPTIONS,),
    "instruction": (Role.INSTRUCTION,),
    "template": (Role.TEMPLATE,),
    "none": (),
}
Site = Literal["block", "heads"]
ONE = r"(?:all|(?:first|last|uniform|from):\d+|ratio:(?:0?\.\d+|1(?:\.0*)?))"
TAKE = re.compile(rf"{ONE}(?:\+{ONE})*")


class Where(BaseModel):
    """Token choice: prompt tokens of ``role``, thinned by ``take``, and the generated tokens if ``generated``.

    Of two texts ``context_a`` is the first and ``context_b`` the second.

    ``take``: ``all``, ``first:K``, ``last:K``, ``uniform:K``, ``ratio:R`` (uniform, share R of them), ``from:K`` (all
    but the first K); joined by ``+`` they add up, as in ``first:4+last:5``.
    ``layer`` is the 0-based decoder block that is steered (SPEC A15); a method that acts in several has them in
    ``layers`` instead. ``site``: the block's output [.., d], or its attention's head outputs [.., heads * head_dim]
    before they are projected. ``decided``: the block whose output each prompt's gain is decided by, for all ``layers``;
    null where every steered block decides by what it is given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: Site = "block"
    layer: int | None = Field(None, ge=0)
    layers: tuple[int, ...] | None = None
    decided: int | None = Field(None, ge=0)
    role: RoleName = "all"
    take: str = "all"
    generated: bool = True

    @field_validator("take")
    @classmethod
    def _known(cls, take: str) -> str:
        if not TAKE.fullmatch(take):
            raise ValueError(
                "must be all, first:K, last:K, uniform:K, from:K or ratio:R with R in (0, 1], or some of them joined"
                " by +"
            )
        return take

    @field_validator("layers")
    @classmethod
    def _distinct(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            raise ValueError("must name at least one block, and each once")
        return layers

    @model_validator(mode="after")
    def _decided_below(self) -> Self:
        if self.decided is not None and any(layer <= self.decided for layer in self.layers or ()):
            raise ValueError(f"decided: block {self.decided} must lie below all layers that it decides for")
        return self

    @property
    def blocks(self) -> tuple[int | None, ...]:
        """The decoder blocks that are steered, bottom up."""
        return (self.layer,) if self.layers is None else tuple(sorted(self.layers))

    @property
    def last_alone(self) -> bool:
        """Whether the output of one block is steered, of a prompt at its last token alone."""
        return self.site == "block" and self.layers is None and (self.role, self.take) == ("all", "last:1")

    def mask(self, roles: Tensor) -> Tensor:
        """[R, T] booleans: the prompt tokens that are steered, from their roles [R, T] (0 = padding)."""
        chosen = torch.isin(
            roles, torch.tensor([int(r) for r in ROLES[self.role]], device=roles.device, dtype=roles.dtype)
        )
        return chosen & torch.stack([_thinned(chosen, take) for take in self.take.split("+")]).any(0)


def _thinned(chosen: Tensor, take: str) -> Tensor:
    rank = chosen.cumsum(-1) - 1
    count = chosen.sum(-1, keepdim=True)
    if take == "all":
        return chosen
    kind, value = take.split(":")
    if kind == "first":
        return rank < int(value)
    if kind == "from":
        return rank >= int(value)
    if kind == "last":
        return rank >= count - int(value)
    return spread(
        chosen, torch.full_like(count, int(value)) if kind == "uniform" else (count * float(value)).ceil().long()
    )


def spread(chosen: Tensor, k: Tensor) -> Tensor:
    """[R, T] booleans: k [R, 1] of each row's chosen tokens (at least one, at most all), evenly spaced from the first
    on.
    """
    rank = chosen.cumsum(-1) - 1
    count = chosen.sum(-1, keepdim=True)
    k = torch.minimum(k, count).clamp_min(1)
    # the i-th of k evenly spaced picks is rank floor(i * count / k): a token is a pick when the next boundary passes it
    return chosen & (((rank + 1) * k - 1) // count.clamp_min(1) > (rank * k - 1) // count.clamp_min(1))
