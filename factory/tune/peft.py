"""PEFT's methods as tuners: its layers are put into the decoder's projections, named one by one, and taken out
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
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
        config = self.config(list(projections(view, self.kinds())))
        before = {id(p) for p in view.model.parameters()}
        self._peft = self.peft_class(view.model, config, "default", low_cpu_mem_usage=view.device.type == "meta")
        return [p for p in view.model.parameters() if id(p) not in before]

    def peft_config(self) -> PeftConfig:
        """A copy of the configuration that PEFT's layers in the model were made by."""
        if self._peft is None:
            raise RuntimeError(f"tuner '{self.name}' is not applied")
        config: PeftConfig = deepcopy(self._peft.peft_config["default"])
        return config

    def merge(self, view: ModelView) -> None:
        """PEFT's own merge: its layers are folded into the maps that they were put around."""
        if self._peft is None:
            raise RuntimeError(f"tuner '{self.name}' is not applied")
        self._peft.merge_and_unload()
        self._peft, self.own = None, {}
        self.settle(view)

    def withdraw(self, view: ModelView) -> None:
        if self._peft is not None:
            self._peft.unload()
        self._peft = None
