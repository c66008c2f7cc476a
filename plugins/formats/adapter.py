"""A tuned part in PEFT's layout: adapter_config.json and adapter_model.safetensors, for ``PeftModel.from_pretrained``.

A connector that was trained beside it is among PEFT's ``modules_to_save``.
"""

from __future__ import annotations

from pathlib import Path

from factory import files
from factory.errors import UserError
from factory.formats import ModelFormat, refuse_filled
from factory.model.view import ModelView
from factory.registry import register
from factory.tune import Tuner
from factory.tune.peft import TENSORS, PeftTuner, name_in_peft


@register("format", "adapter")
class Adapter(ModelFormat):
    """The trained part alone, where its method is one of PEFT's."""

    def write(self, path: Path, view: ModelView) -> str:
        refuse_filled(path)
        tuners = [part for part in view.parts if isinstance(part, Tuner)]
        tuner = tuners[0] if len(tuners) == 1 else None
        if not isinstance(tuner, PeftTuner):
            told = ", ".join(f"'{each.name}'" for each in tuners) or "none"
            raise UserError(f"{path}: PEFT's layout holds one part by one of PEFT's methods, and the model has {told}")
        config = tuner.peft_config()
        names = {id(module): name for name, module in view.model.named_modules()}
        config.modules_to_save = [names[id(getattr(view, part))] for part in tuner.beside] or None
        config.inference_mode = True
        config.base_model_name_or_path = view.model.config._name_or_path or None
        files.make_folder(path)
        config.save_pretrained(str(path))
        kept = {name_in_peft(name): p for name, p in tuner.trainable.items()}
        files.write_safetensors(path / TENSORS, kept)
        return f"PeftModel.from_pretrained(model, '{path}')"
