"""What a playground steers with: fitted methods of a run or an artefact, or methods fitted when first chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import factory
from factory import files
from factory.errors import UserError, did_you_mean
from factory.model.view import ModelView
from factory.recipe.nodes import Node, read_node
from factory.registry import available
from factory.run.labels import changes_nothing
from factory.steer import LogitsMethod, PromptMethod, Steerer, Steering, TrainedMethod, artefact
from factory.steer.base import Direction

Made = Steering | PromptMethod | LogitsMethod
TOWARD: tuple[Direction, ...] = ("vision", "text")


@dataclass(frozen=True)
class Offer:
    """One method: its ``label``, and by direction how it is made and the strength that it is shown with first.

    ``node`` is how a recipe names it, where it is not fitted; ``has_strength``: an instruction has none.
    """

    label: str
    make: Mapping[Direction, Callable[[], Made]]
    strength: Mapping[Direction, float]
    yardstick: bool = False
    node: Mapping[str, Any] | None = None
    has_strength: bool = True

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions that there are, the picture's first."""
        return tuple(d for d in TOWARD if d in self.make)


class Methods:
    """The methods on offer, each made once, when it is first asked for. Raises ``UserError`` where there is none."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        self.offers = {offer.label: offer for offer in offers}
        if not self.offers:
            raise UserError("there is no method to play with: the run has no artefacts, prompts or decoding methods")
        self._made: dict[tuple[str, Direction], Made] = {}

    @property
    def first(self) -> Offer:
        """What is shown first: the yardstick, as others are held against it."""
        return next((o for o in self.offers.values() if o.yardstick), next(iter(self.offers.values())))

    def offer(self, label: str) -> Offer:
        """Raises ``UserError`` for a method that is not on offer."""
        if label not in self.offers:
            known = ", ".join(self.offers)
            raise UserError(f"there is no method '{label}' here.{did_you_mean(label, self.offers)} There are: {known}")
        return self.offers[label]

    def ready(self, label: str, direction: Direction) -> bool:
        """Whether the method need not be fitted any more."""
        return (label, direction) in self._made or self.offer(label).node is not None

    def get(self, label: str, direction: Direction) -> Made:
        """The method, ready. Raises ``UserError`` where it is not on offer, or cannot be made."""
        offer = self.offer(label)
        if direction not in offer.make:
            there = " and ".join(offer.directions)
            raise UserError(f"'{label}' is here toward {there} alone, not toward {direction!r}")
        if (label, direction) not in self._made:
            self._made[label, direction] = offer.make[direction]()
        return self._made[label, direction]


def of_artefacts(view: ModelView, folders: Iterable[Path]) -> list[Offer]:
    """Offers of saved steerings, by method; loaded, and so checked, at once."""
    found: dict[str, dict[Direction, Steering]] = {}
    for folder in folders:
        steering = artefact.load(folder, view)
        told = files.read_json(folder / artefact.MANIFEST).get("about", {}).get("direction")
        direction: Direction = "text" if told == "text" else "vision"
        label = folder.resolve().name.removesuffix(f"-{direction}")
        found.setdefault(label, {})[direction] = steering
    return [
        Offer(
            label,
            {d: _always(s) for d, s in made.items()},
            {d: _number(s) for d, s in made.items()},
            any(s.steerer.yardstick for s in made.values()),
        )
        for label, made in found.items()
    ]


def unfitted(nodes: Iterable[Node]) -> list[Offer]:
    """Offers of the prompt and decoding methods among ``nodes``; those that show worked examples, or
    have to be trained, have none here."""
    offers = []
    for node in nodes:
        method = node.make()
        asks = isinstance(method, PromptMethod) and not method.shots and not changes_nothing(type(method))
        if asks or (isinstance(method, LogitsMethod) and not isinstance(method, TrainedMethod)):
            make = dict.fromkeys(TOWARD, _always(method))
            one = dict.fromkeys(TOWARD, 1.0)
            offers.append(Offer(node.label, make, one, node=node.model_dump(), has_strength=not asks))
    return offers


def to_fit(
    view: ModelView, nodes: Iterable[Node], data: Node, diagnostic: Node | None, layer: int | None, limit: int
) -> list[Offer]:
    """Offers of the methods among ``nodes`` that can be fitted without dev data, on ``limit`` training samples."""

    needs = diagnostic.model_dump() if diagnostic else None

    def fitting(node: Node, direction: Direction) -> Callable[[], Steering]:
        how, where = node.model_dump(), data.model_dump()
        return lambda: factory.fit(view, how, where, direction, diagnostic=needs, layer=layer, limit=limit)

    offers = []
    for node in nodes:
        method = node.make()
        if isinstance(method, Steerer) and not method.variants():
            make = {d: fitting(node, d) for d in TOWARD}
            offers.append(Offer(node.label, make, dict.fromkeys(TOWARD, 1.0), method.yardstick))
    return offers


def with_defaults() -> list[Node]:
    """Every steering plugin there is that needs no parameters."""
    nodes = []
    for entry in available("steering"):
        try:
            node = read_node("steering", entry.name)
            node.make()
        except (ValidationError, UserError):
            continue
        nodes.append(node)
    return nodes


def _always(made: Made) -> Callable[[], Made]:
    return lambda: made


def _number(steering: Steering) -> float:
    return float(steering.strength) if isinstance(steering.strength, int | float) else 1.0
