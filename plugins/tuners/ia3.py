"""IA3 (Liu et al., 2022): learned scales on keys, values and the feed-forward's inner states (equation 8), PEFT's
layers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from peft import IA3Config, IA3Model
from pydantic import Field

from factory.registry import Params, register
from factory.tune.peft import PeftTuner


class IA3Params(Params):
    """``mlp_out`` scales that projection's input, the others their output.

    ``targets``: what is scaled.
    """

    targets: Annotated[tuple[Literal["key", "value", "mlp_out"], ...], Field(min_length=1)] = (
        "key",
        "value",
        "mlp_out",
    )


@register("tuner", "ia3")
class IA3(PeftTuner):
    """Scales on keys, values and the feed-forward's inner states."""

    Params = IA3Params
    peft_class = IA3Model
    learning_rate = 3e-3
    sweep = (2e-4, 1e-3, 3e-3, 1e-2)

    def config(self, targets: list[str]) -> IA3Config:
        inner = [name for name in targets if name.rpartition(".")[2] in ("down_proj", "fc2")]
        return IA3Config(target_modules=targets, feedforward_modules=inner)
