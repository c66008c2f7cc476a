"""What of a recipe needs pictures, or a column of each token in every block, refused by name for a model without them,
before a weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from factory.blame import wrong
from factory.code import nodes
from factory.model.columns import columnless
from factory.model.family import Family
from factory.recipe import Recipe
from factory.recipe.schema import Node
from factory.recipe.toward import sources_of


def check_pictures(recipe: Recipe, family: Family) -> None:
    """Raises ``UserError`` for what a recipe asks of pictures where a family's models take none, and for what it asks
    of the pictures of conflicts between two texts.
    """
    sources = sources_of(recipe.data)
    if recipe.data and not sources.pictured:
        _check_methods(recipe, f"'{recipe.data.type}' sets two texts against each other")
    if family.sees:
        return
    blind = f"{family.model_class} reads text alone"
    for section in ("tune", "compare"):
        if getattr(recipe, section):
            raise wrong(recipe, section, f"its methods train models that see pictures, and {blind}")
    for node in _every(recipe):
        hidden = recipe.data and sources.pictured and node.plugin.needs_sources(node.params)
        if hidden or node.plugin.needs_pictures(node.params):
            raise wrong(node, "type", f"'{node.type}' needs pictures, and {blind}")


def check_columns(recipe: Recipe, config: Any) -> None:
    """Raises ``UserError`` for what a recipe asks of attention and caches that a model of this configuration has not in
    every block."""
    if (why := columnless(config.get_text_config())) is None:
        return
    for node in _every(recipe):
        if node.plugin.needs_columns(node.params):
            named = type(config).__name__.removesuffix("Config")
            raise wrong(node, "type", f"'{node.type}' needs every token in every block, and of {named} {why}")


def _check_methods(recipe: Recipe, why: str) -> None:
    for node in _every((recipe.diagnostic, recipe.diagnostics, recipe.steering)):
        if node.plugin.needs_pictures(node.params):
            raise wrong(node, "type", f"'{node.type}' needs pictures, and {why}")


def _every(value: Any) -> Iterator[Node]:
    """The plugin nodes among parameters, and those within them."""
    for node in nodes(value):
        yield node
        yield from _every(node.params)
