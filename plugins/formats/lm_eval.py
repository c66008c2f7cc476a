"""The vector files of lm-eval's `steered` model: {hookpoint: {steering_vector, steering_coefficient, action, …}}.

They add a constant vector to, or clamp a direction of, every position of a module's output; hookpoints are module names
below the model's ``base_model``. Files are read without unpickling code.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factory import files
from factory.errors import UserError
from factory.formats import EVERYWHERE, Format, constant
from factory.model.view import ModelView
from factory.registry import lookup, register
from factory.steer import Steering
from plugins.formats._vector import adding

LARGEST = 1 << 28  # bytes of a file, packed and unpacked
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@register("format", "lm_eval")
class LmEval(Format):
    """A vector file for ``lm-eval --model steered``: vectors that are added, and directions that are clamped."""

    def write(self, path: Path, steerings: Sequence[Steering], view: ModelView) -> str:
        found: dict[str, dict[str, Any]] = {}
        for s in steerings:
            block, item = _clamp(path, s) if s.steerer.name == "clamp" else _add(path, s, view.width)
            if (name := _hookpoint(view, block)) in found:
                raise UserError(f"{path}: two steerings at block {block}; such a file holds one per module")
            found[name] = item
        buffer = io.BytesIO()
        torch.save(found, buffer)
        files.write_bytes(path, buffer.getvalue())
        return f"lm-eval --model steered --model_args pretrained=MODEL,steer_path={path}"

    def read(self, path: Path, view: ModelView) -> list[Steering]:
        items = [(str(name), *_item(path, str(name), info, view.width)) for name, info in _content(path).items()]
        blocks = {_hookpoint(view, i): i for i in range(view.depth)}
        out = []
        for name, action, vector, coefficient, bias in items:
            if name not in blocks:
                raise UserError(
                    f"{path}: the hookpoint '{name}' is no decoder block of {type(view.model).__name__}; blocks are"
                    f" called {next(iter(blocks))} and so on"
                )
            out.append(_steering(action, vector, coefficient, bias, blocks[name]))
        return out


def _content(path: Path) -> dict[Any, Any]:
    """What a file of ``torch.save`` holds: nothing in it is run, and it unpacks to no more than such files do."""
    data = io.BytesIO(files.read_bytes(path, LARGEST))
    try:
        if zipfile.is_zipfile(data) and sum(each.file_size for each in zipfile.ZipFile(data).infolist()) > LARGEST:
            raise UserError(f"{path}: unpacks to more than {LARGEST:,} bytes, which no vector file does")
        data.seek(0)
        content = torch.load(data, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise anything here
        why = (str(error).splitlines() or [""])[0][:120]
        raise UserError(f"{path}: not a steering vector file of lm-eval ({type(error).__name__}: {why})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a steering vector file of lm-eval: it holds a {type(content).__name__}")
    return content


def _item(path: Path, name: str, info: Any, width: int) -> tuple[str, Tensor, float, Tensor | None]:
    """Action, vector [width], coefficient and bias [width] of one hookpoint."""
    if not isinstance(info, dict) or not {"action", "steering_vector"} <= info.keys():
        raise UserError(f"{path}: not a steering vector file of lm-eval: '{name}' has no action and steering_vector")
    coefficient, bias = info.get("steering_coefficient", 1.0), info.get("bias")
    if isinstance(coefficient, Tensor) and coefficient.numel() == 1:
        coefficient = coefficient.item()
    if not isinstance(coefficient, int | float) or not abs(coefficient) <= torch.finfo(torch.float32).max:
        raise UserError(f"{path}: {name}: its steering_coefficient is not a finite number")
    vectors = [info["steering_vector"], *([] if bias is None else [bias])]
    whole = all(isinstance(v, Tensor) and v.shape == (width,) and v.dtype in FLOATS for v in vectors)
    if info.get("head_index") is not None or info["action"] not in ("add", "clamp") or not whole:
        raise UserError(
            f"{path}: {name}: only actions add and clamp on whole states of width {width} can be read, not on single"
            " heads"
        )
    if not all(torch.isfinite(v).all() for v in vectors) or (info["action"] == "clamp" and not vectors[0].any()):
        raise UserError(f"{path}: {name}: its vector holds NaN, infinite values or, to clamp along, nothing but zeros")
    return info["action"], vectors[0].float(), float(coefficient), bias


def _steering(action: str, vector: Tensor, coefficient: float, bias: Tensor | None, layer: int) -> Steering:
    if action == "add":
        return adding(vector, layer, coefficient)
    clamp = lookup("steering", "clamp")
    state = {
        "u": vector / vector.norm(),
        "c": torch.tensor(coefficient),
        "b": torch.zeros_like(vector) if bias is None else bias.float(),
    }
    return Steering(clamp(clamp.Params()), state, EVERYWHERE.model_copy(update={"layer": layer}), 1.0)


def _hookpoint(view: ModelView, layer: int) -> str:
    base: Any = view.model.base_model
    return next(name for name, module in base.named_modules() if module is view.layers[layer])


def _add(path: Path, s: Steering, width: int) -> tuple[int, dict[str, Any]]:
    block, vector, strength = constant(path, s, width)
    item = {"steering_vector": vector, "steering_coefficient": strength, "action": "add"}
    return block, {**item, "bias": None, "head_index": None}


def _clamp(path: Path, s: Steering) -> tuple[int, dict[str, Any]]:
    if s.where.layer is None or s.where.model_copy(update={"layer": None}) != EVERYWHERE:
        raise UserError(f"{path}: lm-eval clamps at all positions of a block; this one has where={s.where}")
    if s.strength != 1:
        raise UserError(f"{path}: lm-eval clamps whole, which is strength 1; this one has {s.strength}")
    u, c, b = (s.state[name].cpu() for name in ("u", "c", "b"))
    item = {"steering_vector": u, "steering_coefficient": float(c), "action": "clamp"}
    return s.layer, {**item, "bias": b, "head_index": None}
