"""A module's weights as numbers, wherever they are: cut over ranks, offloaded to host memory or disk, or packed by
quantisation.

Whoever runs modules needs nothing of this: their hooks see to it. It is for what reads a matrix itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factory.model.zero import whole

LINEAR = (nn.Linear, Conv1D)
"""Linear maps of transformers' models: GPT-2's keep their weight turned, [in, out]."""


def outputs(module: nn.Module) -> int:
    """How many values a linear map gives."""
    count = module.nf if isinstance(module, Conv1D) else module.out_features
    return count  # type: ignore[return-value]  # an int of both


@contextmanager
def at_hand(model: nn.Module, name: str, tensor: Tensor) -> Iterator[Tensor]:
    """A tensor of the state dict with its values: put together from all ranks, or brought in from disk or host
    memory.
    """
    if tensor.device.type != "meta" or hasattr(tensor, "ds_id"):
        with whole(tensor) as p:
            yield p
        return
    path, _, last = name.rpartition(".")
    with align_module_device(module := model.get_submodule(path)):
        yield getattr(module, last)


@contextmanager
def weight_of(module: nn.Module, name: str = "weight") -> Iterator[Any]:
    """The ``weight`` [out, in] of a linear module, or its ``bias`` (None where it has none). All ranks enter
    together.
    """
    given = getattr(module, name, None)
    if given is None:
        yield None
    elif name == "weight" and not given.is_floating_point():
        yield _unpacked(module)
    else:
        with at_hand(module, name, given) as tensor:
            yield tensor.T if name == "weight" and isinstance(module, Conv1D) else tensor


@torch.no_grad()
def packed_values(module: nn.Module, places: Tensor) -> Tensor:
    """Values [k] of a packed weight [out, in] at k ``places`` of its flattened form."""
    width, device = _inputs(module)
    rows, columns = places // width, places % width
    bias = getattr(module, "bias", None)
    dtype = torch.get_default_dtype() if bias is None else bias.dtype
    made = module(nn.functional.one_hot(columns.to(device), width).to(dtype))
    return (made if bias is None else made - bias)[torch.arange(len(places), device=device), rows.to(device)]


@torch.no_grad()
def _unpacked(module: nn.Module) -> Tensor:
    """What a module with packed weights, whatever their format, makes of the identity."""
    bias = getattr(module, "bias", None)
    dtype = torch.get_default_dtype() if bias is None else bias.dtype
    width, device = _inputs(module)
    made = module(torch.eye(width, device=device, dtype=dtype))
    return (made if bias is None else made - bias).T


def _inputs(module: nn.Module) -> tuple[int, torch.device]:
    """How many values a module with packed weights takes, and where."""
    width, weight = module.in_features, module.weight
    assert isinstance(width, int) and isinstance(weight, Tensor), "what quantisation packs is a linear map"
    return width, weight.device
