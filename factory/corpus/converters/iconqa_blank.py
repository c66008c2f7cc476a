"""IconQA with a blank to fill in."""

from __future__ import annotations

from typing import Any

from factory.corpus.iconqa import IconQA
from factory.registry import register


@register("converter", "iconqa_blank")
class IconQABlank(IconQA):
    """IconQA-blank: answered by the missing word or number, in the wording of the LLaVA Steering repository."""

    task = "fill_in_blank"

    def question(self, item: dict[str, Any]) -> str:
        return f"{item['question']} Fill in the blanks in (_) or answer this question"

    def answer(self, item: dict[str, Any]) -> str:
        return str(item["answer"])
