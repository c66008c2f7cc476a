"""Few-shot prompting toward one modality (AMPS Table 1): answered conflicts that follow it come first."""

from collections.abc import Sequence

from pydantic import PositiveInt

from factory.data.prompt import Prompt
from factory.registry import Params, register
from factory.steer import PromptMethod


class FewShotParams(Params):
    """``shots`` worked examples, each a whole turn with its own image, from training samples of the same task."""

    shots: PositiveInt = 2


@register("steering", "few_shot")
class FewShot(PromptMethod):
    """Worked examples whose answers follow the wanted modality."""

    Params = FewShotParams

    def rewrite(self, prompt: Prompt, direction: str, examples: Sequence[Prompt]) -> Prompt:
        return prompt.prepend(*(segment for example in examples for segment in example.segments))
