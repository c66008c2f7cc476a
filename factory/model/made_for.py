"""Parts that were saved for one base model: a plugin made again from its manifest, and refused on any other model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from factory.errors import UserError
from factory.model.load import fingerprint
from factory.model.view import ModelView
from factory.registry import lookup


def revive(
    manifest: Path,
    kind: str,
    name: str,
    params: Any,
    made_for: tuple[str, str | None],
    view: ModelView,
    without: Sequence[str] = (),
) -> Any:
    """The plugin that a manifest describes; ``made_for`` is the fingerprint (``without`` the parts that the plugin
    replaces) and the class of its base model.

    Raises ``UserError`` for another base model, an unknown plugin, or parameters that do not fit it.
    """
    theirs, model_class = made_for
    if theirs != (ours := fingerprint(view, without)):
        raise UserError(f"{manifest.parent}: made for another base model ({model_class} {theirs}; this one is {ours})")
    cls = lookup(kind, name)
    try:
        return cls(cls.Params.model_validate(params))
    except ValidationError as error:
        raise UserError(f"{manifest}: parameters do not fit {kind} '{name}': {error.errors()[0]['msg']}") from error
