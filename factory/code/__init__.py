"""A digest of a plugin's code, so that a number is made again when what makes it was edited.

It covers the plugin's class and every definition of the project (function, class, module constant) that it reaches by
the names it uses, through base classes and imports, transitively, and plugins that it looks up by a constant name. It
leaves out import statements, docstrings, comments, formatting and annotations, and keys definitions by their name, not
by their module: a move or a reformat changes no digest, an edit changes exactly those of its dependants.

Not covered: what an argument is asked for (``view.encode`` and all the engine around a plugin, told by the package's
version), the wording and checking of recipes (``GROUND``), what is made anew at every start (``ANEW``), libraries, and
data files. The digest of one source is the same on Python 3.11 to 3.13.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from factory.code.tree import GROUND, Place, Tree
from factory.recipe.nodes import Node

__all__ = ["ANEW", "GROUND", "Tree", "asks", "nodes", "of", "of_node", "of_plugin"]

ROOMS = ("factory", "plugins", "eval_suite")
ANEW = {
    "diagnostic": ("summary", "beside"),
    "benchmark": (
        *("rows", "metrics", "unit_sums", "submission", "main", "beside", "shares", "without_interval"),
        *("pictures", "warnings", "summary"),
    ),
}
"""By kind, what is computed at every start from what the stages keep: no stage's inputs hold its code."""


def of(plugin: type | Callable[..., Any], only: Collection[str] = (), leave: Collection[str] = ()) -> str:
    """Digest, 16 hex digits, of the code of a plugin class, or of a function: that of its members ``only``, or all but
    those to ``leave``; "unknown" of a class whose source is not at hand (one defined at a prompt)."""
    tree, start = _place(plugin)
    return tree.digest(*start, only, (*leave, *ANEW.get(getattr(plugin, "kind", ""), ()))) if tree else "unknown"


def asks(plugin: type, names: Collection[str]) -> bool:
    """Whether the code of a plugin class asks anything for one of the attributes ``names``."""
    tree, start = _place(plugin)
    return tree is None or tree.asks(*start, names, ANEW.get(getattr(plugin, "kind", ""), ()))


def _place(plugin: type | Callable[..., Any]) -> tuple[Tree | None, Place]:
    """Where the code of a class is; no tree where it is not at hand."""
    start = (plugin.__module__, plugin.__qualname__.partition(".")[0])
    file = getattr(sys.modules.get(plugin.__module__), "__file__", None)
    tree = _tree(plugin.__module__, Path(file)) if file else None
    return (tree if tree and tree.has(*start) else None), start


def of_node(node: Node, only: Collection[str] = (), leave: Collection[str] = ()) -> str:
    """Digest of the code of the plugin that a recipe node names, and of those that its parameters name."""
    return _joined(of(node.plugin, only, leave), node.params)


def of_plugin(plugin: Any, only: Collection[str] = (), leave: Collection[str] = ()) -> str:
    """Digest of the code of a plugin that was made, and of those that its ``params`` name."""
    return _joined(of(type(plugin), only, leave), getattr(plugin, "params", None))


def _joined(own: str, params: Any) -> str:
    inner = [of_node(node) for node in nodes(params)]
    return hashlib.sha256("+".join([own, *inner]).encode()).hexdigest()[:16] if inner else own


def nodes(value: Any) -> Iterator[Node]:
    """The plugin nodes among parameters, not those within a node."""
    if isinstance(value, Node):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from nodes(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from nodes(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from nodes(each)


@cache
def _rooms() -> dict[str, Path]:
    """Folders of the project's packages; none is imported to find it."""
    found = {room: importlib.util.find_spec(room) for room in ROOMS}
    return {room: Path(spec.origin).parent for room, spec in found.items() if spec and spec.origin}


@cache
def _tree(module: str, file: Path) -> Tree:
    """The tree in which a plugin's module is read: the project's and, out of tree, its own package or the modules of
    its folder."""
    top = module.partition(".")[0]
    if top in ROOMS:
        return _tree_of_rooms()
    package = getattr(sys.modules.get(top), "__path__", None)
    return Tree({**_rooms(), **({top: Path(package[0])} if package else {})}, {module: file})


@cache
def _tree_of_rooms() -> Tree:
    return Tree(_rooms())
