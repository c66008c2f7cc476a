"""PEFT's methods as tuners: its layers are put into the decoder's projections, named one by one, and taken out
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from factory.errors import UserError
from factory.model.view import ModelView
from factory.tune.base import Tuner
from factory.tune.places import projections
from factory.tune.roles import Roles


class PeftTuner(Tuner):
    """Base of the PEFT tuners: a subclass names PEFT's class and makes its configuration."""

    peft_class: ClassVar[type[BaseTuner]]
    _peft: BaseTuner | None = None

    def kinds(self) -> Sequence[str]:
        """Kinds of projections (``factory.tune.places``) that are tuned."""
        return self.params.targets

    def config(self, targets: list[str]) -> PeftConfig:
        """PEFT's configuration for these modules."""
        raise TypeError(f"{type(self).__name__} must define config(targets)")

    def insert(self, view: ModelView, roles: Roles) -> Iterable[nn.Parameter]:
        if any(isinstance(module, BaseTunerLayer) for module in view.model.modules()):
            raise UserError(
                f"tuner '{self.name}': the model holds a trained part with PEFT's layers already, which this one would"
                " replace; choose adapter or mores, or stage: pretrain"
            )
        targets = projections(view, self.kinds())
        before = {id(p) for p in view.model.parameters()}
        self._peft = self.peft_class(
            view.model, self.config(list(targets)), "default", low_cpu_mem_usage=view.device.type == "meta"
        )
        return [p for p in view.model.parameters() if id(p) not in before]

    def withdraw(self, view: ModelView) -> None:
        if self._peft is not None:
            self._peft.unload()
        self._peft = None
