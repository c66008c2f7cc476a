"""Causal language models of transformers that no other family names, searched as ``structural`` searches those with
pictures.
"""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from factory.model.families.structural import Searched
from factory.model.text_family import TextFamily
from factory.registry import register


@register("family", "structural_text")
class StructuralText(Searched, TextFamily):
    """Any other text model that passes the self-check."""

    def __init__(self, model_type: str) -> None:
        self.model_class = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]

    @classmethod
    def of(cls, config: Any) -> StructuralText | None:
        return cls(config.model_type) if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None
