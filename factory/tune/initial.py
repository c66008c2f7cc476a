"""A tuning that goes on from an earlier one's values: a trained part of this project or an adapter in PEFT's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from factory import files
from factory.errors import UserError
from factory.model import manifest as made_for
from factory.model.stored import held
from factory.model.view import ModelView
from factory.tune import checkpoint
from factory.tune.base import Part, Tuner
from factory.tune.peft import ADAPTER, TENSORS, PeftTuner, name_in_peft

ASIDE = {"base_model_name_or_path", "revision", "task_type", "auto_mapping", "inference_mode", "target_modules"} | {
    "modules_to_save",
    "lora_dropout",
    "module_dropout",
    "init_lora_weights",
    "init_weights",
    "peft_version",
    "runtime_config",
}
"""Keys of PEFT's configuration that say nothing of what the saved tensors mean."""
ALTERING = ("pissa", "olora", "corda", "eva", "loftq", "lora_ga")  # starts for which PEFT may change the base


@dataclass(frozen=True)
class Initial:
    """The folder of values to begin with: ``tensors`` is its file; ``ours`` says whether this project wrote it."""

    folder: Path
    tensors: Path
    ours: bool

    @classmethod
    def of(cls, named: str | Path) -> Initial:
        """``named`` itself or its ``tuned/``. Raises ``UserError`` where neither holds a trained part or an adapter."""
        for folder in checkpoint.folders_of(named):
            if checkpoint.is_saved(folder):
                return cls(folder, folder / checkpoint.TENSORS, True)
            if (folder / ADAPTER).is_file():
                if not (folder / TENSORS).is_file():
                    raise UserError(f"{folder}: has {ADAPTER} and no {TENSORS}; save the adapter as safetensors")
                return cls(folder, folder / TENSORS, False)
        raise UserError(
            f"tune.initial: {named} holds no trained part; give a finished tuning run, its tuned/ folder, or a folder"
            f" with PEFT's {ADAPTER}"
        )

    @property
    def digest(self) -> str:
        """What tells these values from others."""
        return files.digest_file(self.tensors)

    def begin(self, tuner: Tuner, view: ModelView) -> None:
        """Give ``tuner``, applied to ``view``, the saved values; on a view without weights check alone that they fit.

        Raises ``UserError`` for another method, other settings, another base model, and tensors that do not fit.
        """
        (self._check_ours if self.ours else self._check_peft)(tuner, view)
        shapes = held([self.tensors]).shapes
        names = {name: self._saved_as(name, shapes) for name in tuner.trainable}
        if lost := sorted(shapes.keys() - set(names.values())):
            raise UserError(f"{self.tensors}: '{lost[0]}' is not trained here{_untrained(view, lost[0])}")
        begun = {n: names[n] for n in names if names[n] in shapes or n in tuner.own}
        tuner.account(
            {n: tuple(p.shape) for n, p in tuner.trainable.items() if n not in begun}
            | {n: shapes[theirs] for n, theirs in begun.items() if theirs in shapes}
        )
        if view.device.type != "meta":
            values = self._values()
            tuner.fill({n: values[begun[n]] if n in begun else p.detach() for n, p in tuner.trainable.items()})

    def _values(self) -> Mapping[str, Tensor]:
        if self.ours:
            form = made_for.read_form(self.folder / checkpoint.MANIFEST, checkpoint.TunerManifest, "a tuner")
            return made_for.read_tensors(self.tensors, form)
        values = files.decode_safetensors(files.read_bytes(self.tensors))
        if odd := made_for.not_finite(values):
            raise UserError(f"{self.tensors}: the tensor '{odd}' holds NaN or infinite values")
        return values

    def _saved_as(self, name: str, shapes: Mapping[str, Any]) -> str:
        """The name under which a trainable parameter is saved."""
        if self.ours:
            return name
        theirs = name_in_peft(name)
        bare = theirs.removesuffix(".weight")  # as PEFT saves DoRA's magnitudes
        return bare if theirs not in shapes and bare in shapes else theirs

    def _check_ours(self, tuner: Tuner, view: ModelView) -> None:
        path = self.folder / checkpoint.MANIFEST
        form = made_for.read_form(path, checkpoint.TunerManifest, "a tuner")
        if form.type != tuner.name:
            raise UserError(f"{path}: holds tuner '{form.type}', and tune.tuner is '{tuner.name}'")
        mine, theirs = tuner.params.model_dump(mode="json"), made_for.revive(path, "tuner", form).params
        self._refuse_other(mine, theirs.model_dump(mode="json"), {"dropout"})
        if tuple(form.new_tokens) != tuple(tuner.tokens.ids if tuner.tokens else ()):
            raise UserError(
                f"{path}: has the new tokens {', '.join(form.new_tokens) or 'no word'}; name the same under"
                " tune.new_tokens"
            )
        if view.device.type != "meta":
            made_for.check_base(self.folder, form.base_model, view, form.beside)

    def _check_peft(self, tuner: Tuner, view: ModelView) -> None:
        if not isinstance(tuner, PeftTuner):
            raise UserError(f"{self.folder}: holds an adapter of PEFT's, and tuner '{tuner.name}' is not one of PEFT's")
        mine, theirs = tuner.peft_config().to_dict(), files.read_json(self.folder / ADAPTER)
        start = str(theirs.get("init_lora_weights"))
        if start.startswith(ALTERING) and str(mine.get("init_lora_weights")) != start:
            raise UserError(f"{self.folder}: was started by {start}, which changes the base model; set start alike")
        self._refuse_other(mine, {key: value for key, value in theirs.items() if key in mine}, ASIDE)

    def _refuse_other(self, mine: Mapping[str, Any], theirs: Mapping[str, Any], aside: set[str]) -> None:
        for key in sorted(theirs.keys() - aside):
            if (mine.get(key) or None) != (theirs[key] or None):
                raise UserError(f"{self.folder}: was trained with {key} {theirs[key]}, and here it is {mine.get(key)}")


def _untrained(view: ModelView, name: str) -> str:
    """What to do about a saved tensor that is not trained here."""
    bare = name.removeprefix("base_model.model.")
    inside = {id(p) for key, p in view.model.named_parameters() if key == bare}
    part = next(
        (p for p in get_args(Part) if view.sees and inside & {id(q) for q in getattr(view, p).parameters()}), None
    )
    return f"; add {part} to tune.beside" if part else ""
