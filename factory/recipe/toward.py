"""Which directions a recipe asks for: names of the two sources of its conflicts."""

from __future__ import annotations

from typing import Any, TypeVar

from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.errors import UserError
from factory.recipe.explain import Loc, refusal
from factory.recipe.nodes import Node
from factory.registry import Params

Directed = TypeVar("Directed", bound=Params)


def sources_of(data: Node | None) -> Sources:
    """The sources of a recipe's ``data:``; a picture and a text where its benchmark does not say."""
    told: Any = getattr(data.plugin, "sources_of", None) if data else None
    return told(data.params) if data and told else PICTURE_AND_TEXT


def toward(section: Directed, sources: Sources, at: Loc = ()) -> Directed:
    """A section, or a plugin's parameters, whose ``directions`` are names of ``sources``: left out, they are the
    sources that stand where its default's do. Raises ``ValidationError`` for a name that neither source has, of the key
    below ``at``.
    """
    asked = getattr(section, "directions", None)
    if not isinstance(asked, tuple):
        return section
    if "directions" not in section.model_fields_set:
        places = dict(zip(PICTURE_AND_TEXT.names, sources.names, strict=True))
        own = tuple(places.get(name, name) for name in asked)
        return section if own == asked else section.model_copy(update={"directions": own})
    mistakes = []
    for i, name in enumerate(asked):
        try:
            sources[name]
        except UserError as error:
            mistakes.append(((*at, "directions", i), str(error)))
    if mistakes:
        raise refusal(mistakes)
    return section
