"""PaliGemma (arXiv 2407.07726) and PaliGemma 2: every token of the prompt sees the whole prompt; only the answer is
causal.
"""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from factory.data.prompt import Role
from factory.model.family import Family
from factory.registry import register


@register("family", "paligemma")
class PaliGemma(Family):
    """PaliGemma. It was not trained on chats and brings no template: images, the beginning token, the text and a line
    break.
    """

    config_class = "PaliGemmaConfig"
    model_class = "PaliGemmaForConditionalGeneration"
    processor_class = "PaliGemmaProcessor"
    bidirectional_prompt = True
    chat_template = (
        "{% set left = namespace(images=0) %}{% for m in messages %}{% for c in m['content'] if c['type'] == 'image'"
        " %}{% set left.images = left.images + 1 %}{% endfor %}{% endfor %}{{ bos_token if left.images == 0 else ''"
        " }}{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}{% set left.images ="
        " left.images - 1 %}{{ '<image>' + (bos_token if left.images == 0 else '') }}{% else %}{{ c['text'] }}{% endif"
        " %}{% endfor %}{{ '' if m['role'] == 'assistant' and loop.last else '\n' }}{% endfor %}"
    )

    def token_inputs(self, model: PreTrainedModel, ids: Tensor, roles: Tensor) -> dict[str, Tensor]:
        """0 in the prompt, 1 in an answer that nothing follows."""
        asked = ((roles != Role.PAD) & (roles != Role.ANSWER)).long()
        return {"token_type_ids": (asked.flip(-1).cumsum(-1).flip(-1) == 0).long()}

    def position_ids(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Counted from 1."""
        return mask.long().cumsum(-1)
