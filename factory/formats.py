"""What other tools read: the contract of formats of steerings and tuned models, and the one vector they all can say.

What nearly every other tool does is h_N <- h_N + strength * v for the output h_N of decoder block N at all positions,
those of images and answers among them. ``constant`` is the v of a steering that does just this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from factory.errors import UserError
from factory.model.view import ModelView
from factory.registry import Plugin
from factory.steer.base import Context
from factory.steer.runtime import Steering
from factory.steer.where import Where

EVERYWHERE = Where()


class ModelFormat(Plugin):
    """A layout for what a tuning run has trained, for tools that do not know this project."""

    def write(self, path: Path, view: ModelView) -> str:
        """Write the tuned model of ``view``, or its trained part, into the new folder ``path``; returns one line that
        says how it is loaded. ``view`` may be changed by it.

        Raises ``UserError`` for a part that the layout cannot say.
        """
        raise TypeError(f"{type(self).__name__} must define write(path, view)")


class Constant(NamedTuple):
    """``strength * vector`` [width] float32, added to the output of ``block`` at all positions."""

    block: int
    vector: Tensor
    strength: float


class Format(Plugin):
    """A layout of files: ``write`` is for another tool, ``read`` takes what another tool has written."""

    def write(self, path: Path, steerings: Sequence[Steering], view: ModelView) -> str:
        """Write ``steerings`` of ``view``'s model; returns one line that says how the other tool takes it.

        Raises ``UserError`` for a steering that the layout cannot say.
        """
        raise TypeError(f"{type(self).__name__} must define write(path, steerings, view)")

    def read(self, path: Path, view: ModelView) -> list[Steering]:
        """The steerings in a file, one a block. Raises ``UserError`` for what it cannot mean on ``view``'s model; here
        for every file."""
        raise UserError(f"format '{self.name}' is written for other tools and not read back")


def refuse_filled(path: Path) -> None:
    """Raises ``UserError`` where ``path``, which is to become a folder, is a file or holds something already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} holds something already; give a new folder")


def constant(path: Path, steering: Steering, width: int) -> Constant:
    """What ``steering`` adds at every position to the states of a model of this width.

    Raises ``UserError`` where it acts in several blocks, on some positions alone, with more than one strength, or on
    each input in its own way.
    """
    name = steering.steerer.name
    if steering.where.layer is None or steering.where.site != "block":
        raise UserError(f"{path}: '{name}' acts inside or in several blocks; a file holds what one block's output gets")
    if not isinstance(steering.strength, int | float):
        raise UserError(f"{path}: '{name}' has no single number as its strength, and a file holds one")
    if (own := steering.where.model_copy(update={"layer": None})) != EVERYWHERE:
        told = f"role {own.role}, take {own.take}, answers {'too' if own.generated else 'not'}"
        raise UserError(
            f"{path}: '{name}' steers some positions ({told}), and other tools steer all positions; --positions all"
            " takes it so, and shows on dev data what that costs"
        )
    h = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    ctx, state = Context(steering.layer), {key: value.cpu() for key, value in steering.state.items()}
    vector = _added(path, steering, h, state, ctx)
    if not torch.allclose(vector, vector[:1].expand_as(vector)):
        raise UserError(
            f"{path}: '{name}' steers every input its own way, and other tools add one vector to all; --mean takes its"
            " mean over the training prompts, and shows on dev data what that costs"
        )
    return Constant(steering.layer, vector[0].clone(), float(steering.strength))


def _added(path: Path, steering: Steering, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
    """What a method adds to the states ``h`` [n, d] at strength 1 [n, d]."""
    method = steering.steerer
    if method.trial_strengths:
        raise UserError(f"{path}: '{method.name}' looks ahead at each prompt, which no other tool does")
    return (method.delta(h, state, ctx) * method.gain(h, state, ctx)[:, None]).float()


def mean_added(path: Path, steering: Steering, h: Tensor) -> Tensor:
    """The mean over the states ``h`` [n, d] of what ``steering`` adds to them at strength 1 [d].

    Raises ``UserError`` for a method that looks ahead at each prompt.
    """
    state = {key: value.cpu() for key, value in steering.state.items()}
    return _added(path, steering, h, state, Context(steering.layer)).mean(0)


def constants(path: Path, steerings: Sequence[Steering], width: int) -> dict[int, Constant]:
    """By block what each of ``steerings`` adds. Raises ``UserError`` where one is no ``constant``, two act in one
    block, or their strengths differ."""
    found: dict[int, Constant] = {}
    for s in steerings:
        each = constant(path, s, width)
        if each.block in found:
            raise UserError(f"{path}: two steerings at block {each.block}; such a file holds one vector a block")
        found[each.block] = each
    if len(strengths := {each.strength for each in found.values()}) != 1:
        raise UserError(f"{path}: one strength goes with such a file, and these steerings have {sorted(strengths)}")
    return dict(sorted(found.items()))
