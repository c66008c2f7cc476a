"""From a recipe's model node to a checked ModelView: precision, quantisation and placement."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from accelerate.utils import align_module_device
from torch import Tensor, nn

from factory.errors import UserError
from factory.model.checks import self_check
from factory.model.family import frozen
from factory.model.source import find
from factory.model.view import ModelView
from factory.recipe.schema import ModelSpec

SAMPLED = 64  # values of each parameter that its fingerprint reads


def device_for(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises ``UserError`` for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"model.device '{name}': not on this machine; use auto or cpu") from error
    return device


def placement(spec: ModelSpec) -> dict[str, Any]:
    """What ``from_pretrained`` is told of devices and quantisation. Raises ``UserError`` where this machine cannot do it."""
    device = device_for(spec.device)
    options: dict[str, Any] = {}
    if spec.quantize:
        if device.type != "cuda" and spec.device_map is None:
            raise UserError(f"model.quantize={spec.quantize} needs a CUDA GPU, and the model would run on {device}; leave model.quantize out")
        if find_spec("bitsandbytes") is None:
            raise UserError(f"model.quantize={spec.quantize} needs bitsandbytes, which is not installed: pip install 'steering-factory[quantize]'")
        dtype = getattr(torch, spec.dtype)
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=spec.quantize == "8bit", load_in_4bit=spec.quantize == "4bit",
            bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        )  # fmt: skip
    if spec.device_map or spec.quantize:
        options["device_map"] = spec.device_map or {"": device}
    return options


def load(spec: ModelSpec) -> ModelView:
    """A frozen, self-checked view of the model that a recipe names."""
    source, options = find(spec), placement(spec)
    cls = getattr(transformers, source.family.model_class)
    transformers.utils.logging.disable_progress_bar()  # a run has bars of its own, and stderr is for mistakes
    try:
        model = cls.from_pretrained(source.folder, dtype=getattr(torch, spec.dtype), local_files_only=True, **options)
        processor = source.family.load_processor(source.folder)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"model folder {source.folder}: cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    placed = frozen(model) if "device_map" in options else frozen(model).to(device_for(spec.device))
    view = ModelView(placed, processor, source.family, k_sigma=source.card.k_sigma if source.card else None)
    self_check(view)
    return view


def fingerprint(view: ModelView) -> str:
    """Hash of a model's configuration and of values sampled from every parameter; reads a few kilobytes per tensor at most."""
    h = hashlib.sha256(type(view.model).__name__.encode())
    for name, tensor in sorted(_tensors(view.model)):
        h.update(f"{name}{tuple(tensor.shape)}".encode())
        h.update(tensor.detach().flatten()[:: max(1, tensor.numel() // SAMPLED)][:SAMPLED].float().cpu().numpy().tobytes())
    return h.hexdigest()[:16]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state dict's names and tensors; those that lie offloaded on disk or in host memory are brought in one module at a time."""
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "meta":
            yield name, tensor
            continue
        path, _, last = name.rpartition(".")
        with align_module_device(module := model.get_submodule(path)):
            yield name, getattr(module, last).detach().clone()
