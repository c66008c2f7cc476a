"""LoRA (Hu et al., 2021): W0 + B A on the decoder's projections (equation 6 of the MoReS paper), PEFT's layers.

On a model that was loaded quantised (``model.quantize``) this is QLoRA (Dettmers et al., 2023): the base stays in 4 or
8 bits.
"""

from __future__ import annotations

from typing import Annotated, Literal

from peft import LoraConfig, LoraModel
from pydantic import Field, PositiveInt

from factory.registry import Params, register
from factory.tune.peft import PeftTuner

Target = Literal["query", "key", "value", "attention_out", "mlp_in", "mlp_out"]


class LoraParams(Params):
    """``alpha`` null is twice the rank, as in LLaVA-1.5's recipe.

    ``rank`` of each update; ``dropout`` on its input; ``targets``: the projections that get one.
    """

    rank: PositiveInt = 128
    alpha: PositiveInt | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = (
        "query",
        "key",
        "value",
        "attention_out",
        "mlp_in",
        "mlp_out",
    )


@register("tuner", "lora")
class Lora(PeftTuner):
    """Low-rank updates of the decoder's projections."""

    Params = LoraParams
    peft_class = LoraModel
    learning_rate = 2e-4
    sweep = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)

    def config(self, targets: list[str]) -> LoraConfig:
        p = self.params
        return LoraConfig(r=p.rank, lora_alpha=p.alpha or 2 * p.rank, lora_dropout=p.dropout, target_modules=targets)
