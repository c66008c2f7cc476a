"""Zoo cards: what is known of a model or a component by name, where its weights are, and its architecture where no
weights are present.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError

from factory.errors import UserError, did_you_mean
from factory.registry import Params


class Card(Params):
    """One model of the zoo. ``folder`` is relative to model_zoo/; ``hub`` is an id on the Hugging Face hub,
    ``revision`` a commit or branch of it; ``part`` is a part of the zoo that is a whole model; ``compose`` are the
    parts that it is put together from, and ``tuned`` the trained parts that go into them, relative to model_zoo/.

    ``config`` is the model's Hugging Face configuration as far as it decides sizes, and ``parameters`` what a model
    built from it counts. ``layer`` is the decoder block steered by default (SPEC A15), ``defaults`` by the name of a
    diagnostic what it does on this model where a recipe leaves it open, ``image_tokens`` what one 640 x 480 photo
    takes, ``answer_tokens`` how many its longest answer to a batch of prompts usually has, the end token included;
    ``weight_files`` how many safetensors files hold the weights, ``released_dtype`` their precision.
    ``verified`` says which of the facts were checked against what, ``unverified`` which could not be.
    """

    name: str
    family: str
    licence: str
    about: str
    folder: str | None = None
    hub: str | None = None
    revision: str | None = None
    part: str | None = None
    compose: dict[str, Any] | None = None
    tuned: tuple[str, ...] = ()
    gated: bool = False
    layer: int | None = None
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    prompt: str | None = None
    image_tokens: PositiveInt | None = None
    answer_tokens: int | None = Field(None, ge=2)
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


class PackagedFile(Params):
    """A ``file`` inside the wheel of a package of the Python index, the wheel's size in ``bytes`` and its
    ``sha256``.
    """

    name: str
    version: str
    file: str
    bytes: PositiveInt
    sha256: str


class ComponentType(Params):
    """The registered component that a part is one of: ``{kind: llm, type: smollm2}``."""

    kind: Literal["llm", "vision_encoder"]
    type: str


class Part(Params):
    """One component with its weights: an encoder or a language model. ``config`` is its Hugging Face configuration as
    far as it decides sizes, ``unpacked_bytes`` about what it takes on disk; ``verified`` and ``unverified`` as on a
    model's card.
    """

    name: str
    component: ComponentType
    licence: str
    about: str
    package: PackagedFile
    unpacked_bytes: PositiveInt
    verified: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    config: dict[str, Any]


def cards() -> list[str]:
    return _names("cards")


def parts() -> list[str]:
    return _names("parts")


@cache
def read_card(name: str) -> Card:
    """The card of model ``name``. Raises ``UserError`` with near matches where there is none."""
    return _read("cards", name, "model", Card)


@cache
def read_part(name: str) -> Part:
    """The card of component ``name``. Raises ``UserError`` with near matches where there is none."""
    return _read("parts", name, "part", Part)


def _names(folder: str) -> list[str]:
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _folder().joinpath(folder).iterdir()
        if entry.name.endswith(".yaml")
    )


def _read(folder: str, name: str, what: str, form: type[Any]) -> Any:
    if name not in (there := _names(folder)):
        raise UserError(f"no {what} '{name}' in the zoo.{did_you_mean(name, there)} There are: {', '.join(there)}")
    path = _folder().joinpath(folder, f"{name}.yaml")
    try:
        return form.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise UserError(f"{path}: not a {what}'s card: {error}") from error


def command(*words: str) -> str:
    """How the user calls one of our commands."""
    return " ".join((os.environ.get("STEERING_FACTORY_COMMAND", "steering-factory"), *words))


def card_folder(card: Card) -> Path | None:
    """Where a card's shipped weights lie, if it ships any."""
    return shipped(card.folder) if card.folder else None


def shipped(folder: str) -> Path:
    """A folder of model_zoo/."""
    return Path(str(_folder())) / folder


def _folder() -> Traversable:
    return files("model_zoo")
