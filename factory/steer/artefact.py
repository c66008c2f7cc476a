"""The artefact: a folder with a manifest, safetensors and a card, that steers the base model it was made for and no other."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from factory import files
from factory.errors import UserError
from factory.model.load import fingerprint
from factory.model.view import ModelView
from factory.registry import lookup
from factory.steer.runtime import Steering, check
from factory.steer.where import Where

MANIFEST, TENSORS = "steering_config.json", "steering.safetensors"
LIBRARIES = ("torch", "transformers", "safetensors", "steering-factory")


def save(folder: Path, steering: Steering, view: ModelView, about: dict[str, Any] | None = None) -> Path:
    """Write ``steering`` (its strength must be a number) as an artefact of ``view``'s model; ``about`` goes into the manifest."""
    if not isinstance(steering.strength, int | float):
        raise UserError("an artefact holds one number as its strength; give a strength per row or a controller when it is loaded")
    manifest = {
        "schema": 1,
        "type": steering.steerer.name,
        "params": steering.steerer.params.model_dump(mode="json"),
        "where": steering.where.model_dump(),
        "strength": steering.strength,
        "base_model": {"class": type(view.model).__name__, "fingerprint": fingerprint(view)},
        "libraries": {name: version(name) for name in LIBRARIES},
        "about": about or {},
    }
    files.write_safetensors(folder / TENSORS, {k: v.contiguous() for k, v in steering.state.items()})
    files.write_text(folder / "README.md", _card(manifest))
    files.write_json(folder / MANIFEST, manifest)
    return folder


def check_folder(folder: Path) -> None:
    """Raises ``UserError`` where ``folder`` is no artefact."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: not a steering artefact (it has no {MANIFEST})")


def load(folder: Path, view: ModelView) -> Steering:
    """The steering in ``folder``, ready for ``steer(view, ...)``.

    Raises ``UserError`` where the folder is no artefact, is damaged, or was made for another base model.
    """
    check_folder(folder)
    manifest = files.read_json(folder / MANIFEST)
    try:
        theirs, kind, strength = manifest["base_model"], manifest["type"], manifest["strength"]
        where, params, made_for = Where.model_validate(manifest["where"]), manifest["params"], theirs["fingerprint"]
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{folder / MANIFEST}: not a manifest of a steering artefact ({type(error).__name__})") from error
    if made_for != (ours := fingerprint(view)):
        raise UserError(f"{folder}: made for another base model ({theirs.get('class')} {made_for}; this one is {ours})")
    cls = lookup("steering", kind)
    try:
        steerer = cls(cls.Params.model_validate(params))
    except ValidationError as error:
        raise UserError(f"{folder / MANIFEST}: parameters do not fit steering '{kind}': {error.errors()[0]['msg']}") from error
    steering = Steering(steerer, files.read_safetensors(folder / TENSORS), where, strength)
    check(steering, view)
    return steering


def _card(manifest: dict[str, Any]) -> str:
    lines = [f"- {key}: {value}" for key, value in {**manifest["about"], **manifest["where"], "strength": manifest["strength"]}.items()]
    return "\n".join(
        [
            "---", "library_name: steering-factory", "tags: [activation-steering, multimodal]", "---", "",
            f"# {manifest['type']} steering for {manifest['base_model']['class']}", "", *lines, "",
            "```python", "from factory.steer import artefact, steer", "",
            "with steer(view, artefact.load(folder, view)):", "    view.model.generate(**view.encode(prompts))", "```", "",
        ]
    )  # fmt: skip
