"""Leaving the other modality out: the settings ``base_image`` and ``base_text`` of MC² as a baseline (ours as a rival
to steering).
"""

from collections.abc import Sequence

from factory.data.prompt import Prompt, Role
from factory.registry import register
from factory.steer import PromptMethod

OTHER = {"vision": Role.CONTEXT, "text": Role.IMAGE}


@register("steering", "unimodal")
class Unimodal(PromptMethod):
    """The question with the wanted modality alone. What a steered model could know at best, where the other one is not
    needed.
    """

    pictured = True

    def rewrite(self, prompt: Prompt, direction: str, examples: Sequence[Prompt]) -> Prompt:
        return prompt.without(OTHER[direction])
