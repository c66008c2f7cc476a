"""Zoo cards: what is known of a model by name, where its weights are, and its architecture where no weights are present."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveInt, ValidationError

from factory.errors import UserError, did_you_mean
from factory.registry import Params


class Card(Params):
    """One model of the zoo. ``folder`` is relative to model_zoo/; ``hub`` is an id on the Hugging Face hub, ``revision`` a commit or branch of it.

    ``config`` is the model's Hugging Face configuration as far as it decides sizes, and ``parameters`` what a model built from it
    counts. ``layer`` is the decoder block steered by default (SPEC A15), ``k_sigma`` MCR's noise in standard deviations (SPEC A8),
    ``image_tokens`` what one 640 x 480 photo takes, ``weight_files`` how many safetensors files hold the weights, ``released_dtype``
    their precision. ``verified`` says which of the facts were checked against what, ``unverified`` which could not be.
    """

    name: str
    family: str
    licence: str
    about: str
    folder: str | None = None
    hub: str | None = None
    revision: str | None = None
    gated: bool = False
    layer: int | None = None
    k_sigma: float | None = None
    prompt: str | None = None
    image_tokens: PositiveInt | None = None
    parameters: PositiveInt | None = None
    weight_files: PositiveInt | None = None
    released_dtype: str = "bfloat16"
    verified: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)

    @property
    def download_bytes(self) -> int | None:
        """About how large the released weights are."""
        return self.parameters and self.parameters * (4 if self.released_dtype == "float32" else 2)

    def hf_config(self) -> Any:
        """The configuration object that ``config`` describes."""
        from transformers import AutoConfig

        sizes = dict(self.config)
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)

    def describes(self, config: Any) -> bool:
        """Whether a model with this configuration is the card's: the same class, and a decoder of the same sizes."""
        if not self.config:
            return True
        own = self.hf_config()
        sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        mine, theirs = own.get_text_config(), config.get_text_config()
        return type(own) is type(config) and all(getattr(mine, key) == getattr(theirs, key) for key in sizes)


def cards() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().joinpath("cards").iterdir() if entry.name.endswith(".yaml"))


@cache
def read_card(name: str) -> Card:
    """The card of ``name``. Raises ``UserError`` with near matches where there is none."""
    if name not in cards():
        raise UserError(f"no model '{name}' in the zoo.{did_you_mean(name, cards())} There are: {', '.join(cards())}")
    path = _folder().joinpath("cards", f"{name}.yaml")
    try:
        return Card.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path}: not a model card: {error}") from error


def card_folder(card: Card) -> Path | None:
    """Where a card's shipped weights lie, if it ships any."""
    return Path(str(_folder())) / card.folder if card.folder else None


def _folder():
    return files("model_zoo")
