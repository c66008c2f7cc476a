"""A tuner's folder: manifest, safetensors and a card, holding what was trained and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from factory import files
from factory.errors import UserError
from factory.model.made_for import revive
from factory.model.view import ModelView
from factory.tune.base import Tuner

MANIFEST, TENSORS = "tuner_config.json", "tuner.safetensors"
LIBRARIES = ("torch", "transformers", "peft", "safetensors", "steering-factory")


def save(
    folder: Path,
    tuner: Tuner,
    view: ModelView,
    about: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write what ``tuner`` trained on ``view``; ``about`` goes into the manifest.

    ``tensors`` are the trained values by name where the model does not hold them whole (ZeRO-3).
    """
    manifest = {
        "schema": 1,
        "type": tuner.name,
        "params": tuner.params.model_dump(mode="json"),
        "beside": list(tuner.beside),
        "base_model": {"class": type(view.model).__name__, "fingerprint": tuner.base},
        "parameters": tuner.counts(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "about": dict(about or {}),
    }
    files.write_safetensors(folder / TENSORS, tuner.trainable if tensors is None else tensors)
    files.write_text(folder / "README.md", _card(manifest))
    files.write_json(folder / MANIFEST, manifest)
    return folder


def is_saved(folder: Path) -> bool:
    """Whether ``folder`` holds a trained part."""
    return (folder / MANIFEST).is_file()


def load(folder: Path, view: ModelView) -> Tuner:
    """Apply the tuner that the manifest names to ``view`` and fill it with what was trained; the model ends frozen.

    Raises ``UserError`` where the folder holds no tuner, is damaged, or was made for another base model.
    """
    if not is_saved(folder):
        raise UserError(f"{folder}: not a tuner's folder (it has no {MANIFEST})")
    manifest = files.read_json(folder / MANIFEST)
    try:
        kind, params, beside, theirs = (
            manifest["type"],
            manifest["params"],
            tuple(manifest["beside"]),
            manifest["base_model"],
        )
        made_for = (theirs["fingerprint"], theirs.get("class"))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST}: not a manifest of a tuner ({type(error).__name__})") from error
    tuner = revive(folder / MANIFEST, "tuner", kind, params, made_for, view, beside)
    tensors = files.read_safetensors(folder / TENSORS)
    tuner.apply(view, beside, restorable=True)
    try:
        tuner.fill(tensors)
    except UserError:
        tuner.remove(view)
        raise
    view.model.eval().requires_grad_(False)
    return tuner


def _card(manifest: dict[str, Any]) -> str:
    counts = manifest["parameters"]
    lines = [f"- {key}: {value}" for key, value in {**manifest["about"], **manifest["params"]}.items()]
    return "\n".join(
        [
            "---",
            "library_name: steering-factory",
            "tags: [multimodal, parameter-efficient-fine-tuning]",
            "---",
            "",
            f"# {manifest['type']} for {manifest['base_model']['class']}",
            "",
            (
                f"{counts['tuner']:,} trained parameters, and {counts['beside']:,} of"
                f" {', '.join(manifest['beside']) or 'no part'} beside them."
            ),
            "",
            *lines,
            "",
            "```python",
            "from factory import tune",
            "",
            "tune.load(folder, view)",
            "view.model.generate(**view.encode(prompts))",
            "```",
            "",
        ]
    )
