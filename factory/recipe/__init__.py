"""YAML text to a frozen, validated Recipe; every mistake is shown at once, with its file, line and column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from factory.blame import mark
from factory.errors import UserError
from factory.recipe import yaml_nodes
from factory.recipe.explain import explain, located
from factory.recipe.paths import FOLDER
from factory.recipe.schema import Node, Origin, Recipe
from factory.recipe.slots import kind_at
from factory.recipe.yaml_nodes import Document, Mistake, Place
from factory.registry import load_plugins

__all__ = ["Node", "Recipe", "RecipeError", "dump", "load", "loads"]


TOLD = 30  # mistakes that a message shows
OVERRIDE = 200  # characters of an override that it shows


class RecipeError(UserError):
    """All mistakes of a recipe, one a line: ``file:line:column dotted.path: message``."""

    def __init__(self, mistakes: Iterable[Mistake]):
        ordered = sorted(mistakes, key=lambda mistake: (mistake.place.line, mistake.place.column))
        self.mistakes = tuple(f"{mistake.place} {mistake.message}" for mistake in ordered)
        more = len(ordered) - TOLD
        rest = [f"{ordered[0].place.source}: and {more:,} more mistakes"] if more > 0 else []
        super().__init__("\n".join([*self.mistakes[:TOLD], *rest]))
        self.placed = True


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the file ``path``, with ``a.b=c`` overrides applied.

    Raises UserError where the file cannot be read and RecipeError, with every mistake, where the recipe is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as fault:
        raise UserError(f"recipe '{path}' not found") from fault
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"recipe '{path}' cannot be read: {fault}") from fault
    return loads(text, str(path), overrides, path)


def loads(text: str, source: str = "recipe", overrides: Sequence[str] = (), path: Path | None = None) -> Recipe:
    """The recipe in ``text``; ``source`` is what its mistakes are shown under, ``path`` the file it came from."""
    mistakes: list[Mistake] = []
    root = _overridden(_compose(text, source), overrides, path, mistakes)
    try:
        document = yaml_nodes.to_document(root)
    except Mistake as mistake:
        raise RecipeError([*mistakes, mistake]) from mistake
    mistakes += document.mistakes
    _load_named_plugins(document, path, mistakes)
    recipe = _validate(document, path, mistakes)
    if recipe is None or mistakes:
        raise RecipeError(mistakes)
    mark(recipe, document.places)
    return recipe.made_from(Origin(path, text, tuple(overrides)))


def dump(recipe: Recipe) -> str:
    """YAML text, with every default filled in, that loads back to an equal recipe."""
    return yaml_nodes.dump(recipe.resolved())


def _compose(text: str, source: str) -> yaml.Node:
    try:
        return yaml_nodes.parse_nodes(text, source)
    except Mistake as mistake:
        raise RecipeError([mistake]) from mistake


def _overridden(root: yaml.Node, overrides: Sequence[str], path: Path | None, mistakes: list[Mistake]) -> yaml.Node:
    for text in overrides:
        try:
            root = _override(root, text, path)
        except Mistake as mistake:
            mistakes.append(mistake)
    return root


def _override(root: yaml.Node, text: str, path: Path | None) -> yaml.Node:
    place = Place(f"override '{text if len(text) <= OVERRIDE else text[:OVERRIDE] + '…'}'")
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise Mistake(place, "should read KEY=VALUE, as in steering.2.beta=0.5")
    node = yaml_nodes.parse_nodes(value, place.source, whole_source=True)
    return yaml_nodes.override(root, tuple(key.split(".")), node, place, lambda at: _is_plugin(root, at, path))


def _is_plugin(root: yaml.Node, at: yaml_nodes.Path, path: Path | None) -> bool:
    """Whether a bare word at ``at`` names a plugin, and so stands for ``{type: word}``."""
    kind = partial(kind_at, Recipe, at, partial(yaml_nodes.named_node, root))
    try:
        return kind() is not None
    except UserError:  # the recipe's own list may hold the plugin
        for spec in yaml_nodes.words(root, "plugins"):
            with suppress(UserError):  # told when the whole list is loaded
                load_plugins([spec], path.parent if path else None)
    try:
        return kind() is not None
    except UserError:  # told when the node is read; what it would hold cannot be known
        return True


def _load_named_plugins(document: Document, path: Path | None, mistakes: list[Mistake]) -> None:
    """Load the recipe's ``plugins:`` before its nodes are checked against them; the schema judges the list's form."""
    listed = document.data.get("plugins") if isinstance(document.data, dict) else None
    for index, spec in enumerate(listed if isinstance(listed, list) else []):
        try:
            load_plugins([spec] if isinstance(spec, str) else [], path.parent if path else None)
        except UserError as error:
            mistakes.append(_at(document, ("plugins", index), str(error)))


def _validate(document: Document, path: Path | None, mistakes: list[Mistake]) -> Recipe | None:
    data: Any = {} if document.data is None else document.data
    try:
        context = {FOLDER: path.parent if path else None}
        return Recipe.model_validate_json(json.dumps(data), strict=True, context=context)
    except ValidationError as error:
        mistakes += [_at(document, loc, text) for loc, text in located(explain(error, Recipe), document.written)]
        return None


def _at(document: Document, loc: tuple[str | int, ...], message: str) -> Mistake:
    return Mistake(document.places[loc], f"{yaml_nodes.dotted_path(loc)}: {message}")
