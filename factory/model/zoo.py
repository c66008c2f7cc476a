"""Zoo cards: what is known of a model by name, and where its weights are."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import ValidationError

from factory.errors import UserError, did_you_mean
from factory.registry import Params


class Card(Params):
    """One model of the zoo. ``folder`` is relative to model_zoo/; ``hub`` is an id on the Hugging Face hub."""

    name: str
    family: str
    licence: str
    about: str
    folder: str | None = None
    hub: str | None = None
    layer: int | None = None
    k_sigma: float | None = None


def cards() -> list[str]:
    return sorted(Path(entry.name).stem for entry in _folder().joinpath("cards").iterdir() if entry.name.endswith(".yaml"))


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
