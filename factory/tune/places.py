"""Where tuners act in the decoder: its projections by what they do, and choices of layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import StringConstraints
from torch import nn

from factory.errors import UserError
from factory.model.view import ModelView

PROJECTIONS = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "attention_out": ("o_proj", "dense", "out_proj"),
    "mlp_in": ("gate_proj", "up_proj", "gate_up_proj", "fc1"),
    "mlp_out": ("down_proj", "fc2"),
}
SEEN = {
    "query": ("q_proj", "query", "q"),
    "key": ("k_proj", "key", "k"),
    "value": ("v_proj", "value", "v"),
    "attention_out": ("out_proj", "o_proj", "proj", "projection_layer"),
    "mlp_in": ("fc1", "linear_fc1", "gate_proj", "up_proj", "w1"),
    "mlp_out": ("fc2", "linear_fc2", "down_proj", "w2"),
}  # the same in vision towers, some of which fuse query, key and value into one map
FUSED = ("qkv",)
POOLING = {"head", "pooler"}  # what a tower makes of its tokens for other uses; no language model reads it
LAYERS = r"all|shallow|middle|deep|every:[1-9]\d*"
Layers = Annotated[str, StringConstraints(pattern=rf"^({LAYERS})$")]


def projections(view: ModelView, kinds: Sequence[str]) -> dict[str, nn.Module]:
    """The decoder's linear maps of these ``kinds`` (keys of ``PROJECTIONS``) by their full name in ``view.model``,
    bottom up.

    The vision tower's, which share their names, are never among them. Raises ``UserError`` where a block with attention
    has none of a kind; of one that keeps a running state, those that it has are taken.
    """
    blocks = {id(module) for block in view.layers for module in block.modules()}
    inside = {name: module for name, module in view.model.named_modules() if id(module) in blocks and name}
    found: dict[str, nn.Module] = {}
    for kind in kinds:
        mine = {
            name: module
            for name, module in inside.items()
            if name.rpartition(".")[2] in PROJECTIONS[kind] and hasattr(module, "weight")
        }
        if len(mine) < view.depth - len(view.running):
            raise UserError(
                f"{type(view.model).__name__}: its decoder blocks have no projection called"
                f" {' or '.join(PROJECTIONS[kind])}, which this tuner trains"
            )
        found |= mine
    return found


def seeing_projections(view: ModelView, kinds: Sequence[str]) -> dict[str, nn.Module]:
    """The vision tower's linear maps of these ``kinds`` by their full name in ``view.model``; a map in which query, key
    and value are fused counts for each of them. Raises ``UserError`` where the tower has none of a kind.
    """
    tower = {id(module) for module in view.vision_tower.modules()}
    linear = {
        name: module
        for name, module in view.model.named_modules()
        if id(module) in tower and isinstance(module, nn.Linear) and not POOLING & set(name.split("."))
    }
    found: dict[str, nn.Module] = {}
    for kind in kinds:
        names = SEEN[kind] + (FUSED if kind in ("query", "key", "value") else ())
        mine = {name: module for name, module in linear.items() if name.rpartition(".")[2] in names}
        if not mine:
            raise UserError(
                f"{type(view.vision_tower).__name__}: the vision tower has no projection called {' or '.join(names)},"
                f" which this tuner trains; leave '{kind}' out of its targets"
            )
        found |= mine
    return found


def chosen_layers(layers: Layers, depth: int) -> list[int]:
    """0-based blocks: all, every:K (0, K, 2K, …, table 10 of the MoReS paper), or its thirds of table 11, each half the
    depth.
    """
    if step := re.fullmatch(r"every:(\d+)", layers):
        return list(range(0, depth, int(step[1])))
    half, quarter = depth // 2, depth // 4
    return list(
        {
            "all": range(depth),
            "shallow": range(half),
            "middle": range(quarter, quarter + half),
            "deep": range(depth - half, depth),
        }[layers]
    )
