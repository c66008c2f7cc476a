"""Full fine-tuning: every weight of the language model, in place."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from factory.model.view import ModelView
from factory.registry import register
from factory.tune import Tuner
from factory.tune.roles import Roles


@register("tuner", "full")
class Full(Tuner):
    """All weights of the decoder, its embedding and its unembedding."""

    in_place = True
    packable = True
    learning_rate = 2e-5
    sweep = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4)

    def insert(self, view: ModelView, roles: Roles) -> Iterable[nn.Parameter]:
        return [*view.decoder.parameters(), *view.unembed.parameters()]
