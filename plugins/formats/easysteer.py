"""EasySteer's specification of a steered request or server (steering on vLLM), beside a control vector. SPEC.md 12.

{"vectors": [{"source": FILE.gguf, "algorithm": "direct", "scale": strength, "layers": [N], "normalize": false,
              "apply": {"prompt": "all", "generation": "all"}}], "conflict": "error"}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from factory import files
from factory.errors import UserError
from factory.formats import Format, constants
from factory.model.view import ModelView
from factory.registry import lookup, register
from factory.steer import Steering


@register("format", "easysteer")
class EasySteer(Format):
    """A specification for EasySteer's server or a request to it, with its control vector."""

    def write(self, path: Path, steerings: Sequence[Steering], view: ModelView) -> str:
        if path.suffix != ".json":
            raise UserError(f"{path}: EasySteer's specification is a .json file; its vector goes beside it as .gguf")
        found, vector = constants(path, steerings, view.width), path.with_suffix(".gguf")
        gguf = lookup("format", "gguf")
        gguf(gguf.Params()).write(vector, steerings, view)
        content = {
            "source": vector.name,
            "algorithm": "direct",
            "scale": next(iter(found.values())).strength,
            "layers": list(found),
            "normalize": False,
            "apply": {"prompt": "all", "generation": "all"},
        }
        files.write_json(path, {"vectors": [content], "conflict": "error"})
        return f"vllm serve MODEL --enable-steer-vector --steering-config {path}   # {vector.name} beside it"
