"""Where a component's weights come from: a part of the zoo, a local folder, a hub id, or nowhere (random weights from a
configuration).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import model_validator
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from factory.errors import UserError
from factory.model.stored import account, cached, held, missing, weight_files
from factory.registry import Params, lookup
from factory.zoo.cards import parts, read_part
from factory.zoo.packages import is_fetched, needed

_planned: ContextVar[bool] = ContextVar("planned", default=False)


@contextmanager
def planned() -> Iterator[None]:
    """Within it nothing is fetched from the hub, and a part's ``config`` stands for what its source would tell."""
    token = _planned.set(True)
    try:
        yield
    finally:
        _planned.reset(token)


def is_planned() -> bool:
    """Whether parts answer with the sizes that stand in for their sources."""
    return _planned.get()


class Sourced(Params):
    """``zoo``: a part of the zoo, fetched from the Python package index; or ``source``: a folder or a hub id; without
    either ``config``, keys of the Hugging Face configuration of a model with random weights. Beside a source ``config``
    is its sizes, for plans that are made before it is there.
    """

    zoo: str | None = None
    source: str | None = None
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Sourced:
        if self.zoo is None and self.source is None and self.config is None:
            raise ValueError(
                "needs zoo (a part of the zoo), source (a folder or a hub id), or config (sizes for random weights)"
            )
        if self.zoo is not None and (self.source is not None or self.config is not None):
            raise ValueError(
                "names a part of the zoo, which has weights and sizes of its own: leave source and config out"
            )
        if self.zoo is not None and self.zoo not in parts():
            raise ValueError(f"knows no part '{self.zoo}' of the zoo; there are {', '.join(parts())}")
        return self

    @property
    def place(self) -> str | None:
        """The folder or hub id that holds it; None for random weights. Raises ``UserError`` for a part of the zoo that
        is not here.
        """
        return self.source if self.zoo is None else str(needed(self.zoo))

    def read_config(self, config_class: str | type, inside: str | None = None) -> PreTrainedConfig:
        """The configuration, of class ``config_class``; ``inside`` names it in the configuration of a larger model, as
        CLIP's.

        Raises ``UserError`` where there is none, where it is of another class, or where its keys are wrong.
        """
        cls = class_of(config_class)
        if self.config is not None and (self.source is None or _planned.get()):
            try:
                return cls(**self.config)
            except (TypeError, ValueError) as error:
                raise UserError(f"model.compose: not a {cls.__name__}: {str(error).splitlines()[0]}") from error
        found = self._known_config() or self._read(AutoConfig, "configuration")
        found = found if isinstance(found, cls) else getattr(found, inside or "", found)
        if not isinstance(found, cls):
            raise UserError(
                f"model.compose: {self.zoo or self.source} holds a {type(found).__name__}, and this type of component"
                f" needs a {cls.__name__}"
            )
        return found

    @property
    def elsewhere(self) -> bool:
        """Whether a run gets the source where it is not here: a part of the zoo, or a hub id."""
        return self.zoo is not None or (self.source is not None and _is_hub_id(self.source))

    def absent(self) -> str | None:
        """Why the source is not on this machine; None where it is, or where there is none to be."""
        try:
            with planned():
                self.place is None or self._read(AutoConfig, "configuration")
        except UserError as error:
            return str(error)
        return None

    def read_weights(self, model_class: Any, config: PreTrainedConfig) -> nn.Module:
        """The model with its source's weights, or random ones from ``config`` (none on the meta device);
        ``model_class`` is a transformers (auto) class.
        """
        if (self.source or self.zoo) and torch.get_default_device().type != "meta":
            self.account(model_class, config)
            model, found = self._read(model_class, "weights", config=config, output_loading_info=True)
            missing(type(model), found, f"model.compose: {self.place}", self._is_part(config))
            return model
        make = getattr(model_class, "from_config", None) or model_class._from_config
        return make(config)

    def account(self, model_class: Any, config: PreTrainedConfig) -> None:
        """Refuse a source on this machine whose weights are not those of the class, before one is read; what is not
        here yet is told of when it is.
        """
        stands_in = self.config is not None and _planned.get()
        absent = self.zoo is not None and not is_fetched(read_part(self.zoo))
        if stands_in or absent or (place := self.place) is None:
            return
        local = Path(place).expanduser()
        folder = local if local.is_dir() else cached(place, None)
        files = weight_files(folder, pickled=True) if folder else []
        if files and all(path.is_file() for path in files):
            cls = model_class._model_mapping[type(config)] if hasattr(model_class, "_model_mapping") else model_class
            account(cls, config, held(files), f"model.compose: {place}", self._is_part(config))

    def _is_part(self, config: PreTrainedConfig) -> bool:
        """Whether the source holds a larger model than the part that is taken from it."""
        return not isinstance(self._read(AutoConfig, "configuration"), type(config))

    def _known_config(self) -> PreTrainedConfig | None:
        """The configuration on the card of a part that has not been fetched."""
        if self.zoo is None or is_fetched(part := read_part(self.zoo)):
            return None
        lookup(part.component.kind, part.component.type)  # its module makes its configuration known to AutoConfig
        sizes = dict(part.config)
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)

    def _read(self, cls: Any, what: str, **options: Any) -> Any:
        place = self.place or ""
        folder = Path(place).expanduser()
        local = folder.is_dir()
        if not local and not _is_hub_id(place):
            raise UserError(f"model.compose: folder {place}: not found")
        transformers.utils.logging.disable_progress_bar()  # a run has bars of its own, and stderr is for mistakes
        try:
            return cls.from_pretrained(
                folder if local else place,
                trust_remote_code=False,
                **options,
                **({"local_files_only": True} if _planned.get() else {}),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"model.compose: {place}: its {what} cannot be read: {str(error).strip().splitlines()[0]}"
            ) from error


def _is_hub_id(place: str) -> bool:
    return place.count("/") == 1 and not place.startswith((".", "/", "~"))


def class_of(named: str | type) -> Any:
    """A class of transformers by its name, or a class of our own."""
    return getattr(transformers, named) if isinstance(named, str) else named
