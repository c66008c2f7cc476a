"""What a method on prompts asks, the first calls of those that ask twice included."""

from __future__ import annotations

from collections.abc import Sequence

from factory.bench import answer_prompts
from factory.data.prompt import Prompt
from factory.model.view import ModelView
from factory.steer.base import Direction, PromptMethod, TwoCalls


def rewritten(
    view: ModelView,
    method: PromptMethod,
    prompts: Sequence[Prompt],
    direction: Direction,
    examples: Sequence[Sequence[Prompt]] | None = None,
) -> list[Prompt]:
    """The prompts as a method asks them, each with its ``examples``; of one that asks twice the second prompts, whose
    first ones are answered here.
    """
    if isinstance(method, TwoCalls):
        told = answer_prompts(view, [method.first(p, direction) for p in prompts], method.first_tokens)
        return [method.second(p, direction, harmless(view, t)) for p, t in zip(prompts, told, strict=True)]
    shown = examples or [[] for _ in prompts]
    return [method.rewrite(p, direction, list(some)) for p, some in zip(prompts, shown, strict=True)]


def harmless(view: ModelView, text: str) -> str:
    """An answer that can stand in a prompt: without what spells a special token there."""
    while (spelt := view.writing.reserved(text)) is not None:
        text = text.replace(spelt, "")
    return text
