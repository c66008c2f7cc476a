"""IconQA with text choices."""

from __future__ import annotations

from typing import Any

from factory.corpus.iconqa import IconQA
from factory.registry import register


@register("converter", "iconqa_txt")
class IconQATxt(IconQA):
    """IconQA-txt: text choices, answered by the choice's words, in the wording of the LLaVA Steering repository."""

    task = "choose_txt"

    def question(self, item: dict[str, Any]) -> str:
        return (
            f"{item['question']} Choices: {', '.join(map(str, item['choices']))}. Choose an option from the choices to"
            " answer the question."
        )

    def answer(self, item: dict[str, Any]) -> str:
        return str(item["choices"][item["answer"]])
