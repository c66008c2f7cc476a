"""A model's sizes as its configuration tells them: no weights are read or allocated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from factory.errors import UserError
from factory.model.family import Family
from factory.model.load import device_for, placement
from factory.model.source import Wanted, family_of, find, known
from factory.model.weights import LINEAR, outputs
from factory.recipe.schema import ModelSpec
from factory.zoo.cards import Card

QUANTISED = {
    "8bit": 1.0,
    "4bit": 0.516,
}  # bytes a weight: LLM.int8 and nf4 with doubly quantised scales (QLoRA, sec. 3: 0.127 bits)


@dataclass(frozen=True)
class ModelFacts:
    """A model as its configuration tells it; ``parts`` are parameters by part, each counted once, ``linear`` those that
    quantisation packs.
    """

    cls: str
    family: str
    parts: dict[str, int]
    depth: int
    width: int
    kv_width: int
    mlp: int
    vocabulary: int
    dtype: str
    linear: int = 0
    quantize: str | None = None
    image_tokens: int | None = None

    @property
    def bytes_per_value(self) -> int:
        return getattr(torch, self.dtype).itemsize

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @property
    def bytes(self) -> int:
        if self.quantize is None:
            return self.parameters * self.bytes_per_value
        packed = round(self.linear * QUANTISED[self.quantize])
        return (self.parameters - self.linear) * self.bytes_per_value + packed


def sizes_of(config: Any, family: Family, dtype: torch.dtype) -> ModelFacts:
    """A model's sizes from its configuration; its weights are neither read nor allocated."""
    return facts_of(family.skeleton(config), family, dtype)


def _largest(size: int | list[int] | None) -> int | None:
    """A size that may differ from block to block."""
    return max(size) if isinstance(size, list) else size


def shares(model: PreTrainedModel, family: Family) -> dict[str, int]:
    """Parameters by part, each counted once: a connector that lies inside the vision tower is not counted there, tied
    embeddings are the decoder's, and what belongs to no part is ``other``. They add up to the model's.
    """
    modules = family.parts(model)
    owner = {id(p): name for name, part in reversed(modules.items()) for p in part.parameters()}
    counts = dict.fromkeys(("vision", "connector", "decoder", "unembedding", "other"), 0)
    for p in model.parameters():
        counts[owner.get(id(p), "other")] += p.numel()
    return {name: n for name, n in counts.items() if n}


def facts_of(model: PreTrainedModel, family: Family, dtype: torch.dtype) -> ModelFacts:
    text = model.config.get_text_config()
    heads, kv_heads, inner = (
        _largest(getattr(text, name, None))
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_width = (kv_heads or heads) * head_dim
    maps = [m for m in family.decoder(model).modules() if isinstance(m, LINEAR)]
    widest = max((outputs(m) for m in maps), default=0)
    return ModelFacts(
        type(model).__name__,
        family.name,
        shares(model, family),
        text.num_hidden_layers,
        text.hidden_size,
        kv_width,
        inner or widest,  # OPT, for one, calls it otherwise
        text.vocab_size,
        str(dtype).removeprefix("torch."),
        sum(m.weight.numel() for m in maps),
    )


def find_facts(model: ModelSpec | Wanted) -> tuple[ModelFacts | None, Card | None, list[str]]:
    """The model's facts from its folder's configuration, else from its zoo card, the card if it is this model's, and
    what is missing of it.
    """
    model, spec, lacking = Wanted.of(model), Wanted.of(model).asked, []
    for check in (find, placement):
        try:
            check(model)
        except UserError as error:
            lacking += [] if model.unfetched else [str(error)]
    try:
        config, card = known(model)
        found = sizes_of(config, family_of(config), getattr(torch, spec.dtype))
    except UserError as error:
        return None, None, lacking or [str(error)]
    return replace(found, quantize=spec.quantize, image_tokens=card.image_tokens if card else None), card, lacking


def too_small(spec: ModelSpec, needed: int) -> str | None:
    """Why the device cannot hold ``needed`` bytes, or None; a model that accelerate spreads out may have room
    elsewhere.
    """
    device = device_for(spec.device)
    if device.type != "cuda" or spec.device_map:
        return None
    there = torch.cuda.get_device_properties(device).total_memory
    return (
        f"{device} has {gigabytes(there)} of memory, the run needs about {gigabytes(needed)}"
        if needed > there
        else None
    )


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"
