"""From a recipe's model node to a checked ModelView. What is missing or broken is said before weights are read."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from factory.errors import UserError
from factory.model.checks import self_check
from factory.model.compose import compose, composed_config
from factory.model.family import Family, frozen
from factory.model.view import ModelView
from factory.model.zero import load_cut, whole
from factory.model.zoo import Card, card_folder, read_card
from factory.recipe.schema import ModelSpec
from factory.registry import available, lookup


@dataclass(frozen=True)
class Source:
    """A model that was found but not loaded: its folder (None where it is composed), configuration, family and card."""

    folder: Path | None
    config: Any
    family: Family
    card: Card | None
    bytes: int


def find(spec: ModelSpec) -> Source:
    """Locate a model and check its files without loading weights.

    Raises ``UserError`` for a missing folder or file, an unknown family, or a damaged safetensors file.
    """
    for folder in spec.tuned:
        tuned_folder(folder)
    if spec.compose:
        config = composed_config(spec.compose)
        return Source(None, config, family_of(config), None, 0)
    card = read_card(spec.zoo) if spec.zoo else None
    folder = Path(spec.path).expanduser() if spec.path else card_folder(card) if card else None
    if folder is None:
        raise UserError(f"model '{spec.zoo}': its weights are not shipped. Download {card.hub} and give its folder: model.path=FOLDER")
    if not folder.is_dir():
        raise UserError(f"model folder {folder}: not found. Give the folder that holds config.json: model.path=FOLDER")
    config = _config(folder)
    return Source(folder, config, family_of(config), card, sum(_check_weights(f) for f in _weight_files(folder)))


def _config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder}: has no config.json; is it a folder written by save_pretrained?")
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot be read: {str(error).splitlines()[0]}") from error


def family_of(config: Any) -> Family:
    """The registered family of a configuration, matched by its class. Raises ``UserError`` for a model no family knows."""
    names = [entry.name for entry in available("family")]
    for name in sorted(names, key=lambda n: (n == "structural", n != config.model_type)):
        if (family := lookup("family", name).of(config)) is not None:
            return family
    raise UserError(f"no family for {type(config).__name__} (model type '{config.model_type}'). Families: {', '.join(names)}")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"model folder {folder}: {name} is missing; copy it there or download the model again")
    return [folder / name for name in names]


def _check_weights(path: Path) -> int:
    """Size in bytes of a safetensors file whose header and length are sound; a truncated download is caught here."""
    size = path.stat().st_size
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length)) if length < size else None
        end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        sound = 8 + length + end == size
    except (struct.error, ValueError, AttributeError, TypeError, KeyError):
        sound = False
    if not sound:
        raise UserError(f"{path}: damaged or cut short; copy or download it again")
    return size


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


def outline(spec: ModelSpec) -> ModelView:
    """A view without weights (its parameters are on the meta device): enough to tokenize prompts, whatever the model's size."""
    source = find(spec)
    with torch.device("meta"):
        if spec.compose:
            model, processor = compose(spec.compose)
            return ModelView(frozen(model), processor, source.family)
        model = source.family.hf_class()._from_config(source.config)
    if (source.folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(source.folder, local_files_only=True)
    return ModelView(frozen(model), _processor(source), source.family)


def _processor(source: Source) -> Any:
    try:
        return source.family.load_processor(source.folder)
    except (OSError, ValueError) as error:
        raise UserError(f"model folder {source.folder}: its processor cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def load(spec: ModelSpec, zero: int = 0) -> ModelView:
    """A frozen, self-checked view of the model that a recipe names; with ``zero`` 3 cut over the ranks. Parts that it composes of
    sizes alone get random weights."""
    source, device, dtype = find(spec), device_for(spec.device), getattr(torch, spec.dtype)
    if spec.compose and zero == 3:
        raise UserError("launch.zero: 3 cuts a model that is read from a folder; save the composed one with save_pretrained and name it: model.path=FOLDER")
    model, processor = compose(spec.compose, dtype=dtype) if spec.compose else _read(source, dtype, zero, device)
    view = ModelView(model if zero == 3 else frozen(model).to(device), processor, source.family)
    if zero == 3:
        view.identity = fingerprint(view)
    self_check(view)
    _tune(view, spec.tuned)
    return view


def tuned_folder(named: str) -> Path:
    """The folder of a trained part: ``named`` itself, or ``tuned/`` in a run's folder. Raises ``UserError`` where there is none."""
    from factory.tune import is_saved  # tuners work on views, which this module makes

    for folder in (Path(named).expanduser(), Path(named).expanduser() / "tuned"):
        if is_saved(folder):
            return folder
    raise UserError(f"model.tuned: {named} holds no trained part; give the folder of a finished tuning run, as in model.tuned=[runs/NAME]")


def _tune(view: ModelView, folders: Sequence[str]) -> None:
    """Put trained parts into the model; one that is weights of the model itself leaves no tuner behind."""
    from factory import tune

    for folder in folders:
        tuner = tune.load(tuned_folder(folder), view)
        if tuner.in_model:
            tuner.settle(view)


def _read(source: Source, dtype: torch.dtype, zero: int, device: torch.device) -> tuple[Any, Any]:
    read = partial(source.family.hf_class().from_pretrained, source.folder, dtype=dtype, local_files_only=True)
    transformers.utils.logging.disable_progress_bar()  # a run has bars of its own, and stderr is for mistakes
    try:
        model = load_cut(read, source.config, dtype, device) if zero == 3 else read()
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model folder {source.folder}: cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return model, _processor(source)


def fingerprint(view: ModelView) -> str:
    """Hash of a model's configuration and of values sampled from every parameter; reads a few kilobytes per tensor at most."""
    if view.identity:
        return view.identity
    h = hashlib.sha256(type(view.model).__name__.encode())
    for name, tensor in sorted(view.model.state_dict(keep_vars=True).items()):
        with whole(tensor) as p:
            flat = p.detach().flatten()
            sampled = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
            h.update(f"{name}{tuple(p.shape)}".encode())
            h.update(sampled.numpy().tobytes())
    return h.hexdigest()[:16]
