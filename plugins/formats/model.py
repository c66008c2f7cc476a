"""A tuned model as a plain checkpoint: trained parts merged into the weights, complete, for transformers alone.

A composed model of one CLIP or SigLIP encoder, LLaVA-1.5's connector and a language model without a bias at its
unembedding is written as the ``LlavaForConditionalGeneration`` that it is, once that class answers alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factory import files
from factory.errors import UserError
from factory.formats import ModelFormat, refuse_filled
from factory.model.view import ModelView
from factory.registry import register
from factory.tune import Tuner
from plugins.formats._llava import write_as_llava


@register("format", "model")
class Model(ModelFormat):
    """The whole model with all that was trained in its weights."""

    def write(self, path: Path, view: ModelView) -> str:
        refuse_filled(path)
        model: Any = view.model
        if getattr(model, "is_quantized", False):
            raise UserError(f"{path}: merge into the model as it was before packing: leave model.quantize out")
        for part in view.parts:
            if isinstance(part, Tuner):
                part.merge(view)
        files.make_folder(path)
        if hasattr(model.config, "connector"):
            write_as_llava(path, view)
            return f"LlavaForConditionalGeneration.from_pretrained('{path}')"
        model.save_pretrained(path)
        view.processor.save_pretrained(path)
        return f"{type(model).__name__}.from_pretrained('{path}')"
