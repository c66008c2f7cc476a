"""A tuned part in PEFT's layout: adapter_config.json and adapter_model.safetensors, for ``PeftModel.from_pretrained``.

A connector that was trained beside it is among PEFT's ``modules_to_save``, new tokens are its trainable ones; the
tokenizer that knows them is saved beside, and the base model has to be resized first.
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
        if tuner.tokens and not hasattr(config, "trainable_token_indices"):
            raise UserError(
                f"{path}: PEFT's layout holds new tokens with LoRA alone, and the model has '{tuner.name}'; export"
                " it as model"
            )
        if tuner.tokens:
            config.trainable_token_indices = tuner.tokens.where(view)
        config.inference_mode = True
        config.base_model_name_or_path = view.model.config._name_or_path or None
        files.make_folder(path)
        config.save_pretrained(str(path))
        kept = {name_in_peft(name): p for name, p in tuner.trainable.items()}
        files.write_safetensors(path / TENSORS, kept)
        if not tuner.tokens:
            return f"PeftModel.from_pretrained(model, '{path}')"
        view.tokenizer.save_pretrained(path)
        rows = view.model.get_input_embeddings().weight.shape[0]
        return f"model.resize_token_embeddings({rows}); PeftModel.from_pretrained(model, '{path}')"
