"""Head steering (Instruction Anchor, arXiv 2602.03677, sec. 4.2; SPEC section 5): block or amplify the heads that
settle the conflict, at instruction tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from factory.data.instructions import Style, instruction
from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.instruments.heads import IN_CIRCUIT, METRIC, HeadScaler, choose_heads, coefficients, scores
from factory.instruments.instructed import Layout, instruct
from factory.registry import Params, register
from factory.steer import States
from factory.steer.where import RoleName


class HeadsParams(Params):
    """``heads``: the ``top`` of eq. 9 on training prompts, as many ``random`` others, or those of the top that both
    directions share. ``by``: eq. 9, or what a head carries in the circuit of the picture (toward the image) and of the
    context (toward the text), which `circuit` among the diagnostics finds.

    ``coefficient``: c at strength 1 (0 blocks; the paper's own value is lost, its table 4 finds 8 to 10 best); strength
    s gives 1 + s (c - 1). ``role``: whose tokens are changed, ``generated``: the answer's too. ``style`` and
    ``layout``: the instruction that the prompts are given; null leaves them without one.
    """

    heads: Literal["top", "random", "shared"] = "top"
    by: Literal["attribution", "circuit"] = "attribution"
    top: PositiveInt = 30
    coefficient: float = Field(10.0, ge=0)
    role: RoleName = "instruction"
    generated: bool = False
    style: Style | None = "amps_rq1"
    layout: Layout = "after_format"


LACKING = (
    "steering 'heads' chooses by the attribution of each head: add `heads` to the recipe's `diagnostics:`, with both"
    " directions"
)


LACKING_CIRCUIT = (
    "steering 'heads' by circuit needs the circuit of each direction: add `circuit` (exchange: picture for the image,"
    " context for the text) to the recipe's `diagnostics:`"
)


@register("steering", "heads")
class Heads(HeadScaler):
    """Outputs of chosen attention heads scaled at instruction tokens: blocked or amplified (Instruction Anchor)."""

    Params = HeadsParams

    def __init__(self, params: HeadsParams) -> None:
        super().__init__(params, params.role, params.generated)

    @property
    def control(self) -> Literal["", "plugin", "all"]:
        return "plugin" if self.params.heads == "random" else ""

    def unfit(self, diagnostic: str | None, diagnostics: Sequence[str]) -> str | None:
        by_circuit = self.params.by == "circuit"
        needed, lacking = ("circuit", LACKING_CIRCUIT) if by_circuit else ("heads", LACKING)
        return None if needed in diagnostics else lacking

    def rewrite(self, prompt: Prompt, direction: str) -> Prompt:
        p = self.params
        if p.style is None:
            return prompt
        return instruct(prompt, instruction(p.style, direction, prompt.sources), p.layout)

    def fit(self, states: States) -> dict[str, Tensor]:
        """Raises ``UserError`` where no head attribution, or no circuit, was measured on the training split."""
        by_circuit = self.params.by == "circuit"
        metric = IN_CIRCUIT if by_circuit else METRIC
        by_direction = {d: s for d in states.sources.names if (s := scores(states.found, d, metric)).numel()}
        if states.direction not in by_direction:
            raise UserError(LACKING_CIRCUIT if by_circuit else LACKING)
        chosen = choose_heads(by_direction, states.direction, self.params.top, self.params.heads, states.seed)
        return coefficients(chosen, self.params.coefficient, tuple(by_direction[states.direction].shape))
