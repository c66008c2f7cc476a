"""No change to the language model: what is trained are the parts beside it, as in LLaVA's connector pretraining (arXiv
2310.03744).
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from factory.model.view import ModelView
from factory.registry import register
from factory.tune import Tuner
from factory.tune.roles import Roles


@register("tuner", "connector")
class Connector(Tuner):
    """Nothing of its own: the parts beside it alone, the connector as a rule."""

    inside_blocks = False
    packable = True
    learning_rate = 1e-3
    sweep = (3e-4, 1e-3, 3e-3)

    def insert(self, view: ModelView, roles: Roles) -> Iterable[nn.Parameter]:
        return ()
