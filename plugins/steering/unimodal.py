"""Leaving the other source out: the settings ``base_image`` and ``base_text`` of MC² as a baseline (ours as a rival to
steering, and between two texts).
"""

from collections.abc import Sequence

from factory.data.prompt import Prompt
from factory.registry import register
from factory.steer import PromptMethod


@register("steering", "unimodal")
class Unimodal(PromptMethod):
    """The question with the wanted source alone. What a steered model could know at best, where the other one is not
    needed.
    """

    sided = True

    def rewrite(self, prompt: Prompt, direction: str, examples: Sequence[Prompt]) -> Prompt:
        return prompt.only(direction)
