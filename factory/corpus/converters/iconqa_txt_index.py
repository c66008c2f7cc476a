"""IconQA with text choices, answered as the released file has it: by the index of the choice."""

from __future__ import annotations

from typing import Any

from factory.corpus.converters.iconqa_txt import IconQATxt
from factory.registry import register


@register("converter", "iconqa_txt_index")
class IconQATxtIndex(IconQATxt):
    """IconQA-txt: text choices, answered by the choice's index, as the LLaVA Steering repository trains and scores."""

    def answer(self, item: dict[str, Any]) -> str:
        return str(item["answer"])
