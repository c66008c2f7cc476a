"""Steering Factory: which modality a multimodal model believes, and how to steer it.

A vector that turns the shipped model toward the picture, fitted, put to work and kept:

    import factory

    view = factory.load("tiny")
    vector = factory.fit(view, "static", "scenes", direction="vision", limit=16)
    with factory.steered(view, vector, strength=2.0):
        turned = factory.states(view, "scenes", limit=4, layers=[4, 5])  # [prompts, layers, width]

Beside these, ``run_recipe`` runs a recipe, ``read`` opens a run's folder, and ``register`` makes a class a plugin. All
are imported when they are first asked for. What no document names is internal.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factory.api import Run, fit, load, read, run_recipe, states, steered
    from factory.registry import register

__all__ = ["Run", "fit", "load", "read", "register", "run_recipe", "states", "steered"]

_PLACES = {"register": "factory.registry"} | dict.fromkeys(
    ("Run", "fit", "load", "read", "run_recipe", "states", "steered"), "factory.api"
)
_FACTORY_BOY = ("Factory", "DjangoModelFactory", "Faker", "LazyAttribute", "Sequence", "SubFactory", "post_generation")

# It warns at each int8 product, and of kernels it did not download.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in _FACTORY_BOY:
        raise AttributeError(
            f"factory.{name} is factory_boy's, and this `factory` is Steering Factory's ({__file__}): the two packages"
            " share the name; keep them in environments of their own"
        )
    raise AttributeError(f"module 'factory' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
