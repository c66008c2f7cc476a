"""The vector files of lm-eval's `steered` model, read and written: {hookpoint: {steering_vector, steering_coefficient,
action, …}}.

They add a constant vector to, or clamp a direction of, every position of a module's output; hookpoints are module names
below the model's ``base_model``. Files are read without unpickling code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factory import files
from factory.errors import UserError
from factory.model.view import ModelView
from factory.registry import lookup
from factory.steer import Steering
from factory.steer.base import Context
from factory.steer.where import Where

EVERYWHERE = Where()


def write(path: Path, steerings: Sequence[Steering], view: ModelView) -> Path:
    """Write ``steerings`` for ``lm-eval --model steered``. Raises ``UserError`` for one that such a file cannot say."""
    found: dict[str, dict[str, Any]] = {}
    for s in steerings:
        name = _hookpoint(view, s.where.layer)
        if name in found:
            raise UserError(f"{path}: two steerings at block {s.where.layer}; such a file holds one per module")
        if s.where.model_copy(update={"layer": None}) != EVERYWHERE or not isinstance(s.strength, int | float):
            raise UserError(
                f"{path}: lm-eval steers all positions with one strength; '{s.steerer.name}' has where={s.where},"
                f" strength={s.strength}"
            )
        found[name] = _clamp(path, s) if s.steerer.name == "clamp" else _add(path, s, view.width)
    buffer = io.BytesIO()
    torch.save(found, buffer)
    files.write_bytes(path, buffer.getvalue())
    return path


def read(path: Path, view: ModelView) -> list[Steering]:
    """The steerings in a vector file, for ``steer(view, ...)``. Raises ``UserError`` for what it cannot mean here."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        items = [
            (name, info["action"], info["steering_vector"].float(), float(info.get("steering_coefficient", 1.0)), info)
            for name, info in content.items()
        ]
    except (OSError, pickle.UnpicklingError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a steering vector file of lm-eval ({type(error).__name__}:"
            f" {str(error).splitlines()[0][:120]})"
        ) from error
    blocks = {_hookpoint(view, i): i for i in range(view.depth)}
    out = []
    for name, action, vector, coefficient, info in items:
        if name not in blocks:
            raise UserError(
                f"{path}: the hookpoint '{name}' is no decoder block of {type(view.model).__name__}; blocks are called"
                f" {next(iter(blocks))} and so on"
            )
        if info.get("head_index") is not None or action not in ("add", "clamp") or vector.shape != (view.width,):
            raise UserError(
                f"{path}: {name}: only actions add and clamp on whole states of width {view.width} can be read, not on"
                " single heads"
            )
        out.append(_steering(action, vector, coefficient, info.get("bias"), blocks[name]))
    return out


def _steering(action: str, vector: Tensor, coefficient: float, bias: Tensor | None, layer: int) -> Steering:
    where = EVERYWHERE.model_copy(update={"layer": layer})
    if action == "add":
        cls = lookup("steering", "static")
        return Steering(cls(cls.Params()), {"v": vector}, where, coefficient)
    cls = lookup("steering", "clamp")
    bias = torch.zeros_like(vector) if bias is None else bias.float()
    return Steering(
        cls(cls.Params()), {"u": vector / vector.norm(), "c": torch.tensor(coefficient), "b": bias}, where, 1.0
    )


def _hookpoint(view: ModelView, layer: int) -> str:
    return next(name for name, module in view.model.base_model.named_modules() if module is view.layers[layer])


def _add(path: Path, s: Steering, width: int) -> dict[str, Any]:
    h = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    ctx, state = Context(s.where.layer), {k: v.cpu() for k, v in s.state.items()}
    delta = s.steerer.delta(h, state, ctx) * s.steerer.gain(h, state, ctx)[:, None]
    if not torch.allclose(delta, delta[:1].expand_as(delta)):
        raise UserError(
            f"{path}: '{s.steerer.name}' steers every input its own way; lm-eval's files hold one vector for all"
        )
    return {
        "steering_vector": delta[0].clone(),
        "steering_coefficient": float(s.strength),
        "action": "add",
        "bias": None,
        "head_index": None,
    }


def _clamp(path: Path, s: Steering) -> dict[str, Any]:
    if s.strength != 1:
        raise UserError(f"{path}: lm-eval clamps whole, which is strength 1; this one has {s.strength:g}")
    return {
        "steering_vector": s.state["u"].cpu(),
        "steering_coefficient": float(s.state["c"]),
        "action": "clamp",
        "bias": s.state["b"].cpu(),
        "head_index": None,
    }
