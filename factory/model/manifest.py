"""Parts that were saved for one base model: a manifest beside tensors, and a plugin made again from them.

Manifests and tensors may come from strangers: they are data, checked before anything is made of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from factory import files
from factory.errors import UserError
from factory.model.identity import ModelIdentity, differences
from factory.model.view import ModelView
from factory.recipe.explain import explain
from factory.registry import lookup

SCHEMA = 1
LARGEST = 1 << 26  # bytes of a manifest


class Manifest(BaseModel):
    """What every manifest says: form, plugin, its parameters, the model it was made for, and its tensors' checksum
    (None in those of earlier versions)."""

    model_config = ConfigDict(frozen=True, strict=True)

    form: int = Field(alias="schema")
    type: str
    params: dict[str, Any]
    base_model: ModelIdentity
    sha256: str | None = None
    about: dict[str, Any] = {}


Form = TypeVar("Form", bound=Manifest)


def read_form(path: Path, form: type[Form], what: str) -> Form:
    """The manifest of ``what`` in a file. Raises ``UserError`` where it is none, or of a later version's form."""
    content = files.read_json(path, LARGEST)
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is int and schema != SCHEMA:
        raise UserError(f"{path}: of form {schema}, and this version reads form {SCHEMA}; update steering-factory")
    try:
        return form.model_validate_json(files.encode_json(content), strict=True)
    except ValidationError as error:
        loc, why = explain(error, form)[0]
        at = ".".join(key if len(key) <= 60 else f"{key[:57]}..." for key in map(str, loc))
        raise UserError(f"{path}: not a manifest of {what}: {at or 'it'} {why}") from error


def read_tensors(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The tensors beside a manifest. Raises ``UserError`` where they are not the ones that it was written with, or hold
    what is no number."""
    data = files.read_bytes(path)
    if manifest.sha256 is not None and files.digest_bytes(data) != manifest.sha256:
        raise UserError(f"{path}: damaged or exchanged: its checksum is not the one in the manifest. Make it again.")
    try:
        tensors = files.decode_safetensors(data)
    except ValueError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}). Make it again.") from error
    if odd := not_finite(tensors):
        raise UserError(f"{path}: the tensor '{odd}' holds NaN or infinite values. Make it again.")
    return tensors


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor with NaN or infinite values, or None."""
    wide = {name: t.float() if t.is_floating_point() and t.itemsize == 1 else t for name, t in tensors.items()}
    return next((name for name, t in wide.items() if not torch.isfinite(t).all()), None)


def check_base(
    folder: Path, theirs: ModelIdentity, view: ModelView, without: Sequence[str] = (), strict: bool = True
) -> None:
    """Raises ``UserError`` where ``view``, the parts ``without`` left aside, is not the model that ``theirs`` tells of;
    without ``strict`` one of the same architecture and sizes is let through with a warning.
    """
    found = differences(theirs, view, without)
    if not found:
        return
    told = f"{folder}: made for another base model: {'; '.join(each.text for each in found)}"
    kin = all(each.kin for each in found)
    if strict or not kin:
        raise UserError(told + (". strict=False loads it for this model all the same" if kin else ""))
    warnings.warn(told, stacklevel=3)


def revive(path: Path, kind: str, manifest: Manifest) -> Any:
    """The plugin that a manifest describes. Raises ``UserError`` for an unknown one, and for parameters that do not fit
    it.
    """
    try:
        cls = lookup(kind, manifest.type)
        return cls(cls.Params.model_validate(manifest.params))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValidationError as error:
        loc, why = explain(error, cls.Params)[0]
        place = ".".join(map(str, ("params", *loc)))
        raise UserError(f"{path}: parameters do not fit {kind} '{manifest.type}': {place} {why}") from error
