"""GGUF control vectors, as llama.cpp, repeng and EasySteer read them. SPEC.md 12.

    general.architecture = "controlvector"; string controlvector.model_hint, the type of the language model;
    uint32 controlvector.layer_count; tensors direction.N, float32 [d], N >= 1 the 0-based decoder block

llama.cpp adds scale * direction.N to the output of block N at all positions. The directions are stored as they are, as
repeng does; the strength goes beside them in the string ``controlvector.strength`` (ours; the others do not read it),
and has to be given to the other tool as its scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from factory import files
from factory.errors import UserError
from factory.formats import Format, constants
from factory.model.view import ModelView
from factory.registry import register
from factory.steer import Steering
from plugins.formats._vector import adding, check_block, check_kind, check_vector

ARCHITECTURE = "controlvector"
DIRECTION = re.compile(r"direction\.(\d+)")


@register("format", "gguf")
class Gguf(Format):
    """A control vector for ``llama.cpp --control-vector-scaled``, repeng and EasySteer."""

    def write(self, path: Path, steerings: Sequence[Steering], view: ModelView) -> str:
        import gguf

        directions = constants(path, steerings, view.width)
        if 0 in directions:
            raise UserError(f"{path}: block 0 is steered, and llama.cpp knows control vectors from block 1 on")
        strength = next(iter(directions.values())).strength
        with TemporaryDirectory() as aside:
            whole = Path(aside) / "vector.gguf"
            writer = gguf.GGUFWriter(str(whole), ARCHITECTURE)
            writer.add_string(f"{ARCHITECTURE}.model_hint", view.text_config.model_type)
            writer.add_string(f"{ARCHITECTURE}.method", " ".join(dict.fromkeys(s.steerer.name for s in steerings)))
            writer.add_string(f"{ARCHITECTURE}.strength", repr(strength))
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
            for block, direction in directions.items():
                writer.add_tensor(f"direction.{block}", direction.vector.numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            files.write_bytes(path, whole.read_bytes())
        return f"llama-cli -m MODEL.gguf --control-vector-scaled {path}:{strength:g}"

    def read(self, path: Path, view: ModelView) -> list[Steering]:
        reader = _opened(path)
        if (architecture := _text(reader, "general.architecture")) != ARCHITECTURE:
            raise UserError(f"{path}: a GGUF file of architecture {architecture!r}, not a control vector")
        if (hint := _text(reader, f"{ARCHITECTURE}.model_hint")) is not None:
            check_kind(path, hint, view)
        strength = _strength(path, _text(reader, f"{ARCHITECTURE}.strength"))
        found = []
        for tensor in reader.tensors:
            if not (named := DIRECTION.fullmatch(tensor.name)):
                raise UserError(f"{path}: a tensor {tensor.name!r}, where a control vector has direction.N alone")
            if tensor.data.dtype not in (np.float16, np.float32, np.float64):
                raise UserError(f"{path}: {tensor.name!r} is of {tensor.tensor_type.name}, and directions are float32")
            vector = check_vector(path, tensor.name, torch.from_numpy(np.array(tensor.data)), view)
            found.append(adding(vector, check_block(path, int(named[1]), view), strength))
        if not found:
            raise UserError(f"{path}: a control vector without a direction")
        return found


def _opened(path: Path) -> Any:
    import gguf

    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # a damaged file may raise anything here
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path}: not a whole GGUF file ({why})") from error


def _text(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else bytes(field.parts[-1]).decode(errors="replace")


def _strength(path: Path, told: str | None) -> float:
    try:
        strength = 1.0 if told is None else float(told)
    except ValueError:
        strength = float("nan")
    if not abs(strength) <= torch.finfo(torch.float32).max:
        raise UserError(f"{path}: its strength {told!r} is no finite number")
    return strength
