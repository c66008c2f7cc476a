"""AISteer360's .svec files (aisteer360/algorithms/state_control/_common/steering_vector.py). SPEC.md 12.

    {"model_type": "llama", "directions": {"14": [[d numbers]]}}      one row a direction: added at all positions

The directions are stored as they are; the strength is the multiplier that AISteer360 is given, and no part of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from factory import files
from factory.errors import UserError
from factory.formats import Format, constants
from factory.model.view import ModelView
from factory.registry import register
from factory.steer import Steering
from plugins.formats._vector import adding, check_block, check_kind, check_vector

LARGEST = 1 << 28  # bytes


class _Content(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_type: str
    directions: dict[int, list[list[float]]]


@register("format", "svec")
class Svec(Format):
    """A steering vector of IBM's AISteer360."""

    def write(self, path: Path, steerings: Sequence[Steering], view: ModelView) -> str:
        found = constants(path, steerings, view.width)
        directions = {block: [each.vector.tolist()] for block, each in found.items()}
        content = _Content(model_type=view.text_config.model_type, directions=directions)
        files.write_json(path, content.model_dump(mode="json"))
        return f"SteeringVector.load('{path}'), with a multiplier of {next(iter(found.values())).strength:g}"

    def read(self, path: Path, view: ModelView) -> list[Steering]:
        try:
            content = _Content.model_validate(files.read_json(path, LARGEST))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise UserError(f"{path}: not a steering vector of AISteer360: {where}: {first['msg']}") from error
        check_kind(path, content.model_type, view)
        found = []
        for block, rows in content.directions.items():
            if len(rows) != 1:
                raise UserError(f"{path}: block {block} has {len(rows)} rows, one a position; one for all can be read")
            vector = check_vector(path, f"direction {block}", torch.tensor(rows[0]), view)
            found.append(adding(vector, check_block(path, block, view)))
        return found
