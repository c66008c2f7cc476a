"""What all formats share: a plain vector at a block, and the checks of a foreign file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from factory.errors import UserError
from factory.formats import EVERYWHERE
from factory.model.view import ModelView
from factory.registry import lookup
from factory.steer import Steering


def adding(vector: Tensor, block: int, strength: float = 1.0) -> Steering:
    """``vector`` [d] added to the output of ``block`` at all positions."""
    static = lookup("steering", "static")
    return Steering(static(static.Params()), {"v": vector}, EVERYWHERE.model_copy(update={"layer": block}), strength)


def check_vector(path: Path, name: str, vector: Tensor, view: ModelView) -> Tensor:
    """``vector`` as float32 [d]. Raises ``UserError`` for another width or numbers that are none."""
    if vector.shape != (view.width,):
        raise UserError(f"{path}: {name} is a vector of {list(vector.shape)}, and the model's width is {view.width}")
    if not torch.isfinite(vector).all():
        raise UserError(f"{path}: {name} holds NaN or infinite values")
    return vector.float()


def check_block(path: Path, block: int, view: ModelView) -> int:
    """Raises ``UserError`` for a block that the model lacks."""
    if not 0 <= block < view.depth:
        raise UserError(
            f"{path}: block {block}, and {type(view.model).__name__} has decoder blocks 0 to {view.depth - 1}"
        )
    return block


def check_kind(path: Path, theirs: str, view: ModelView) -> None:
    """Raises ``UserError`` where a file was made for another type of language model."""
    if theirs != view.text_config.model_type:
        raise UserError(
            f"{path}: made for a model of type {theirs!r}, and this one's language model is"
            f" '{view.text_config.model_type}'"
        )
