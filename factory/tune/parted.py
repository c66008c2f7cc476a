"""What a diagnostic may ask of a tuner that parts a modality's representation in two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from factory.model.encode import Batch
from factory.model.view import ModelView


@dataclass(frozen=True)
class Parting:
    """One modality's representation h [B, T, d] in the parts u (its own alone) and p (of the pair), ``gate`` [B, T, d]
    the share of u, ``read`` [B, T, d] what the model reads in the place of h; ``at`` [B, T] are its tokens.
    """

    h: Tensor
    gate: Tensor
    u: Tensor
    p: Tensor
    read: Tensor
    at: Tensor


@runtime_checkable
class Parted(Protocol):
    """A tuner with such parts."""

    def partings(self, view: ModelView, batch: Batch) -> Mapping[str, Parting]:
        """By modality, of a batch of prompts on the model that it is applied to; no gradient."""
        ...
