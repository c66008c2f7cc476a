"""LoRA (Hu et al., 2021): W0 + B A on the decoder's projections (equation 6 of the MoReS paper), PEFT's layers.

On a model that was loaded quantised (``model.quantize``) this is QLoRA (Dettmers et al., 2023): the base stays in 4 or
8 bits. Variants are PEFT's: rsLoRA (Kalajdzievski, 2023, arXiv 2312.03732) scales by alpha / sqrt(r) in place of
alpha / r; DoRA (Liu et al., 2024, arXiv 2402.09353) learns each map's magnitude beside its direction; PiSSA (Meng et
al., 2024, arXiv 2404.02948) starts B A at the base's r first singular directions and leaves the rest in the base.
"""

from __future__ import annotations

from typing import Annotated, Literal

from peft import LoraConfig, LoraModel
from pydantic import Field, PositiveInt

from factory.model.view import ModelView
from factory.registry import Params, register
from factory.tune.peft import PeftTuner
from factory.tune.places import Layers, chosen_layers, projections, seeing_projections

Target = Literal["query", "key", "value", "attention_out", "mlp_in", "mlp_out"]


class LoraParams(Params):
    """``alpha`` null is twice the rank, as in LLaVA-1.5's recipe.

    ``rank`` of each update; ``dropout`` on its input; ``targets``: the projections that get one, of the decoder, of the
    vision tower or of both (``where``). ``layers`` of the decoder: all, shallow, middle, deep (table 11 of the MoReS
    paper), every:K (table 10). ``variant``: plain, rslora or dora. ``start``: zero (B = 0) or pissa, which keeps a copy
    of the maps on the CPU.
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
    where: Literal["decoder", "vision_tower", "both"] = "decoder"
    layers: Layers = "all"
    variant: Literal["plain", "rslora", "dora"] = "plain"
    start: Literal["zero", "pissa"] = "zero"


@register("tuner", "lora")
class Lora(PeftTuner):
    """Low-rank updates of the decoder's projections, or of the vision tower's."""

    Params = LoraParams
    peft_class = LoraModel
    learning_rate = 2e-4
    sweep = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)

    @property
    def alters_base(self) -> bool:
        return self.params.start == "pissa"

    def places(self, view: ModelView) -> list[str]:
        p = self.params
        blocks = [view.layers[i] for i in chosen_layers(p.layers, view.depth)]
        chosen = {id(module) for block in blocks for module in block.modules()}
        maps = {} if p.where == "vision_tower" else projections(view, p.targets)
        inside = [name for name, module in maps.items() if id(module) in chosen]
        return inside if p.where == "decoder" else inside + list(seeing_projections(view, p.targets))

    def config(self, targets: list[str]) -> LoraConfig:
        p = self.params
        return LoraConfig(
            r=p.rank,
            lora_alpha=p.alpha or 2 * p.rank,
            lora_dropout=p.dropout,
            target_modules=targets,
            use_rslora=p.variant == "rslora",
            use_dora=p.variant == "dora",
            init_lora_weights="pissa" if p.start == "pissa" else True,
        )
