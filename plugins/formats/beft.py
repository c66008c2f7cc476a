"""PEFT's BEFT folders: a trained bias of one linear map, which ``PeftModel.from_pretrained`` loads. SPEC.md 12.

    adapter_config.json      {"peft_type": "BEFT", "target_modules": the map's name as a regular expression}
    adapter_model.safetensors    base_model.model.NAME.beft_bias [1, d] = strength * v

With the last map of block N as target, forward(x) = W x + bias adds the vector to the block's output at all positions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from factory import files
from factory.errors import UserError
from factory.formats import Format, constant
from factory.model.view import ModelView
from factory.registry import register
from factory.steer import Steering
from plugins.formats._bias import last_map
from plugins.formats._vector import adding, check_vector

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+)\.beft_bias")


@register("format", "beft")
class Beft(Format):
    """A PEFT adapter that is nothing but the vector: loaded, switched off and shared as any other adapter."""

    def write(self, path: Path, steerings: Sequence[Steering], view: ModelView) -> str:
        config_of = _config_class(path)
        found = [constant(path, s, view.width) for s in steerings]
        biases: dict[str, Tensor] = {}
        for each in found:
            name, module = last_map(path, view, each.block)
            if not isinstance(module, nn.Linear):
                raise UserError(
                    f"{path}: PEFT knows such adapters of torch's own linear maps alone, and {name} of"
                    f" {type(view.model).__name__} is a {type(module).__name__}; `baked` carries the vector"
                )
            if name in biases:
                raise UserError(f"{path}: two steerings at block {each.block}; such a folder holds one vector a block")
            biases[name] = (each.strength * each.vector)[None]
        config = config_of(target_modules="|".join(map(re.escape, biases)), inference_mode=True)
        files.make_folder(path)
        config.save_pretrained(str(path))
        tensors = {f"base_model.model.{name}.beft_bias": bias for name, bias in biases.items()}
        files.write_bytes(path / TENSORS, files.encode_safetensors(tensors))
        return f"PeftModel.from_pretrained(model, '{path}')   # the strength is in the vector"

    def read(self, path: Path, view: ModelView) -> list[Steering]:
        config = files.read_json(path / CONFIG)
        if not isinstance(config, dict) or config.get("peft_type") != "BEFT":
            raise UserError(f"{path / CONFIG}: not the configuration of a BEFT adapter")
        try:
            tensors = files.decode_safetensors(files.read_bytes(path / TENSORS))
        except ValueError as error:
            raise UserError(f"{path / TENSORS}: not a whole safetensors file ({error})") from error
        inside = {id(module): i for i, layer in enumerate(view.layers) for module in layer.modules()}
        blocks = {name: inside[id(m)] for name, m in view.model.named_modules() if id(m) in inside}
        found = []
        for key, bias in tensors.items():
            named = KEY.fullmatch(key)
            block = blocks.get(named[1]) if named else None
            if named is None or block is None:
                raise UserError(f"{path}: '{key}' is no bias inside a decoder block of {type(view.model).__name__}")
            if last_map(path, view, block)[0] != named[1]:
                raise UserError(f"{path}: '{key}' is a bias inside block {block}, not at its output")
            found.append(adding(check_vector(path, key, bias.flatten(), view), block))
        if not found:
            raise UserError(f"{path}: an adapter without a bias")
        return found


def _config_class(path: Path) -> type:
    try:
        from peft import BeftConfig
    except ImportError as error:
        raise UserError(f"{path}: this version of PEFT knows no BEFT adapters; install a newer one") from error
    return BeftConfig
