"""OFT (Qiu et al., 2023): W0 behind a block-diagonal rotation R, R = I at the start (equation 7), PEFT's layers."""

from __future__ import annotations

from typing import Annotated, Literal

from peft import OFTConfig, OFTModel
from pydantic import Field, PositiveInt

from factory.registry import Params, register
from factory.tune.peft import PeftTuner

Target = Literal["query", "key", "value", "attention_out", "mlp_in", "mlp_out"]


class OftParams(Params):
    """``blocks`` rotations of width d / blocks for each projection; a block of width b has b (b - 1) / 2 parameters, as
    in PEFT 0.21 (PEFT 0.10, which the paper used, had b squared). ``exact`` solves the Cayley transform instead of
    PEFT's five-term series.

    ``dropout``: the share of blocks that a training step leaves as the identity; ``targets``: the projections that are
    rotated.
    """

    blocks: PositiveInt = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    exact: bool = False
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("query", "key", "value")


@register("tuner", "oft")
class Oft(PeftTuner):
    """Block-diagonal rotations of the projections' inputs."""

    Params = OftParams
    peft_class = OFTModel
    learning_rate = 2e-4
    sweep = (5e-5, 2e-4, 5e-4, 1e-3)

    def config(self, targets: list[str]) -> OFTConfig:
        p = self.params
        return OFTConfig(
            r=p.blocks,
            oft_block_size=0,
            module_dropout=p.dropout,
            use_cayley_neumann=not p.exact,
            target_modules=targets,
        )
