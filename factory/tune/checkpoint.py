"""A tuner's folder: manifest, safetensors and a card, holding what was trained and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from factory import files
from factory.errors import UserError
from factory.model import manifest as made_for
from factory.model.stored import held
from factory.model.view import ModelView
from factory.tune.base import Part, Tuner

MANIFEST, TENSORS, CARD = "tuner_config.json", "tuner.safetensors", "README.md"
FILES = (TENSORS, CARD, MANIFEST)  # in the order in which they are written
LIBRARIES = ("torch", "transformers", "peft", "safetensors", "steering-factory")


def save(
    folder: str | Path,
    tuner: Tuner,
    view: ModelView,
    about: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write what ``tuner`` trained on ``view``; ``about`` goes into the manifest.

    ``tensors`` are the trained values by name where the model does not hold them whole (ZeRO-3).
    """
    folder = Path(folder)
    data = files.encode_safetensors(tuner.trainable if tensors is None else tensors)
    manifest = {
        "schema": 1,
        "type": tuner.name,
        "params": tuner.params.model_dump(mode="json"),
        "beside": list(tuner.beside),
        "new_tokens": tuner.tokens.ids if tuner.tokens else {},
        "sha256": files.digest_bytes(data),
        "base_model": tuner.base and tuner.base.record(),
        "parameters": tuner.counts(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "about": dict(about or {}),
    }
    files.write_bytes(folder / TENSORS, data)
    files.write_text(folder / CARD, _card(manifest))
    files.write_json(folder / MANIFEST, manifest)
    return folder


def is_saved(folder: str | Path) -> bool:
    """Whether ``folder`` holds a trained part."""
    return (Path(folder) / MANIFEST).is_file()


def folders_of(named: str | Path) -> tuple[Path, Path]:
    """Where a trained part may lie that is named: the folder itself, or ``tuned/`` in it, which is then a run's."""
    folder = Path(named).expanduser()
    return folder, folder / "tuned"


class TunerManifest(made_for.Manifest):
    """What ``tuner_config.json`` says: beside all that is common, the parts that were trained with the tuner, and new
    tokens with their ids.
    """

    beside: tuple[Part, ...]
    new_tokens: dict[str, int] = Field(default_factory=dict)


def load(folder: str | Path, view: ModelView, strict: bool = True) -> Tuner:
    """Apply the tuner that the manifest names to ``view`` and fill it with what was trained; the model ends frozen.

    Raises ``UserError`` where the folder holds no tuner, is damaged, or was made for another base model; without
    ``strict`` one for a model of the same architecture and sizes is loaded with a warning.
    """
    folder = Path(folder)
    if not is_saved(folder):
        raise UserError(f"{folder}: not a tuner's folder (it has no {MANIFEST})")
    manifest = made_for.read_form(folder / MANIFEST, TunerManifest, "a tuner")
    made_for.check_base(folder, manifest.base_model, view, manifest.beside, strict)
    tuner = made_for.revive(folder / MANIFEST, "tuner", manifest)
    tensors = made_for.read_tensors(folder / TENSORS, manifest)
    tuner.apply(view, manifest.beside, restorable=True, words=manifest.new_tokens)
    try:
        tuner.fill(tensors)
    except UserError:
        tuner.remove(view)
        raise
    if tuner.tokens:
        tuner.tokens.rest()
    view.model.eval().requires_grad_(False)
    return tuner


def words_of(folder: str | Path) -> dict[str, int]:
    """The new tokens of a tuner's folder, with their ids."""
    return made_for.read_form(Path(folder) / MANIFEST, TunerManifest, "a tuner").new_tokens


def account_tuned(folder: str | Path, view: ModelView) -> None:
    """Refuse a folder whose tensors are not those that its method trains on ``view``, by their header; ``view`` needs
    no weights, and is left with the method applied, so that the next folder is accounted for on top of it.
    """
    folder = Path(folder)
    manifest = made_for.read_form(folder / MANIFEST, TunerManifest, "a tuner")
    tuner = made_for.revive(folder / MANIFEST, "tuner", manifest)
    tuner.apply(view, manifest.beside, words=manifest.new_tokens)
    try:
        tuner.account(held([folder / TENSORS]).shapes)
    except UserError as error:
        raise UserError(f"{folder / TENSORS}: {error}") from error
    if tuner.in_model:
        tuner.settle(view)


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
