"""Chain-of-thought prompting toward one modality (AMPS Table 1)."""

from collections.abc import Sequence

from pydantic import PositiveInt

from factory.data.instructions import Style, instruction
from factory.data.prompt import Prompt, Role, Segment
from factory.registry import Params, register
from factory.steer import PromptMethod


class ChainOfThoughtParams(Params):
    """``style`` words the instruction; ``think`` asks for the steps (the paper gives no text: this one is ours).

    ``max_new_tokens`` of an answer with its steps.
    """

    style: Style = "amps_rq1"
    think: str = "Think step by step: say what the image shows and what the text says, then answer."
    max_new_tokens: PositiveInt = 32


@register("steering", "cot")
class ChainOfThought(PromptMethod):
    """An instruction, and the request to reason before answering; what follows "answer is" counts."""

    Params = ChainOfThoughtParams

    def rewrite(self, prompt: Prompt, direction: str, examples: Sequence[Prompt]) -> Prompt:
        asked = instruction(self.params.style, direction, prompt.sources)
        return prompt.append(asked, Segment(Role.INSTRUCTION, self.params.think))
