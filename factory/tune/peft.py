"""PEFT's methods as tuners: its layers are put into the decoder's projections, named one by one, and taken out
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from factory.errors import UserError
from factory.model.view import ModelView
from factory.tune.base import Tuner
from factory.tune.places import projections
from factory.tune.roles import Roles

ADAPTER, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a folder as PEFT's ``save_pretrained`` writes it."""


def name_in_peft(name: str) -> str:
    """Under which name PEFT saves a parameter of the model that its layers are in: its adapter's name is left out."""
    return f"base_model.model.{name.replace('.default', '')}"


class PeftTuner(Tuner):
    """Base of the PEFT tuners: a subclass names PEFT's class and makes its configuration."""

    packable = True
    peft_class: ClassVar[type[BaseTuner]]
    _peft: BaseTuner | None = None
    _maps: dict[str, Tensor] | None = None  # as they were, of a method that changes them

    @property
    def alters_base(self) -> bool:
        """Whether PEFT changes the maps that it puts its layers around, when it does so."""
        return False

    def kinds(self) -> Sequence[str]:
        """Kinds of projections (``factory.tune.places``) that are tuned."""
        return self.params.targets

    def places(self, view: ModelView) -> list[str]:
        """Full names of the linear maps that are tuned."""
        return list(projections(view, self.kinds()))

    def config(self, targets: list[str]) -> PeftConfig:
        """PEFT's configuration for these modules."""
        raise TypeError(f"{type(self).__name__} must define config(targets)")

    def insert(self, view: ModelView, roles: Roles) -> Iterable[nn.Parameter]:
        if any(isinstance(module, BaseTunerLayer) for module in view.model.modules()):
            raise UserError(
                f"tuner '{self.name}': the model holds a trained part with PEFT's layers already, which this one would"
                " replace; choose adapter or mores, or stage: pretrain"
            )
        places = self.places(view)
        config = self.config(places)
        before = {id(p) for p in view.model.parameters()}
        if view.device.type == "meta":
            config.init_lora_weights = True  # nothing is there that could be decomposed
        elif self.alters_base:
            self._maps = {name: _weight(view, name).detach().cpu().clone() for name in places}
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
        self._keep_words()
        self._peft.merge_and_unload()
        self._peft, self._maps, self.own = None, None, {}
        self.settle(view)

    def withdraw(self, view: ModelView) -> None:
        if self._peft is not None:
            self._peft.unload()
        with torch.no_grad():
            for name, values in (self._maps or {}).items():
                _weight(view, name).copy_(values)
        self._peft, self._maps = None, None


def _weight(view: ModelView, name: str) -> Tensor:
    """The weight of a plain linear map. Raises ``UserError`` for one that quantisation has packed."""
    weight = view.model.get_submodule(name).weight
    if not weight.is_floating_point():
        raise UserError(f"{name} is quantised, and cannot be decomposed; leave start out, or load the model whole")
    return weight
