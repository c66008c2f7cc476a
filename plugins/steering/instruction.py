"""Asking in words for one modality ("Inst Design" of AMPS Table 1; the instruction setting of MC²)."""

from collections.abc import Sequence
from typing import Literal

from factory.data.instructions import Style, instruction
from factory.data.prompt import Prompt
from factory.registry import Params, register
from factory.steer import PromptMethod


class InstructionParams(Params):
    """``style`` names the wording; ``at`` puts it after the question (AMPS eq. 9) or before it (MC²)."""

    style: Style = "amps_rq1"
    at: Literal["end", "before_question"] = "end"


@register("steering", "instruction")
class Instruction(PromptMethod):
    """An instruction that names the modality to follow."""

    Params = InstructionParams

    def rewrite(self, prompt: Prompt, direction: str, examples: Sequence[Prompt]) -> Prompt:
        segment = instruction(self.params.style, direction, prompt.sources)
        return prompt.append(segment) if self.params.at == "end" else prompt.before_question(segment)
