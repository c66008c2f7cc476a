"""Two pretended devices, ``DEVICES``, on a machine without any: tensors in host memory that say they lie elsewhere.

An operation on tensors of several devices raises as it does on GPUs, where a tensor without dimensions and an index may
lie on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from accelerate import dispatch_model
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from factory.model.view import ModelView

DEVICES = (torch.device("meta:0"), torch.device("meta:1"))
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class There(Tensor):
    """A tensor of a pretended device and the one in host memory that has its values."""

    @staticmethod
    def __new__(cls, here: Tensor, device: torch.device) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=device,
            requires_grad=False,
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(function, args, kwargs or {})

    def __repr__(self) -> str:
        return f"There({self.here!r}, {self.device})"

    def tolist(self) -> Any:
        return self.here.tolist()


def _run(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    indices = args[1] if function in INDEXING else ()
    free = {id(t) for t in indices if isinstance(t, Tensor) and t.device.type == "cpu"}
    at = {
        t.device
        for t in tree_leaves((args, kwargs))
        if isinstance(t, Tensor) and id(t) not in free and (t.ndim or t.device.type != "cpu")
    }
    wanted = kwargs.get("device")
    if function in COPIES:
        at = {torch.device(wanted) if wanted is not None else args[0].device}
    elif len(at) > 1:
        raise RuntimeError(f"{function}: tensors on {' and '.join(sorted(map(str, at)))}")
    device = torch.device(wanted) if wanted is not None else next(iter(at), torch.device("cpu"))
    plain = lambda x: tree_map_only(There, lambda t: t.here, x)
    out = function(*plain(args), **{**plain(kwargs), **({} if wanted is None else {"device": "cpu"})})
    if function.overloadpacket.__name__.endswith("_"):
        return args[0]
    return out if device.type == "cpu" else tree_map_only(Tensor, lambda t: There(t, device), out)


class _Made(TorchDispatchMode):
    """Tensors that are made on a pretended device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(function, args, kwargs or {})


class _Written(TorchFunctionMode):
    """``torch.tensor`` on a pretended device, which is no operation."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") in DEVICES:
            return There(function(*args, **{**kwargs, "device": "cpu"}), kwargs["device"])
        return function(*args, **kwargs)


@contextmanager
def spread(view: ModelView) -> Iterator[ModelView]:
    """The view with all but its last blocks and its output norm on the first device, those on the second."""
    names = {module: name for name, module in view.model.named_modules()}
    depth = [f"{names[view.layers]}.{i}" for i in range(view.depth)]
    second = {*depth[view.depth // 2 + 1 :], names[view.norm]}
    parts: dict[str, torch.device] = {}

    def place(name: str, module: torch.nn.Module) -> None:
        if any(each.startswith(f"{name}.") for each in second) or not name:
            for child, part in module.named_children():
                place(f"{name}.{child}".strip("."), part)
        else:
            parts[name] = DEVICES[name in second]

    place("", view.model)
    with torch.no_grad(), _Made(), _Written():
        dispatch_model(view.model, parts, main_device=DEVICES[0], force_hooks=True)
        yield view
