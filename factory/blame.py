"""Where a recipe's values are written: each section and node carries its place, so that a mistake that shows only later
is told with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from traceback import walk_tb
from typing import Any

from pydantic import BaseModel

from factory.errors import UserError

Path = tuple[str | int, ...]

# A message that speaks of a key: "layer: …", "root 'x': …", "model.dtype=x …", "data.file x: …"
HEAD = re.compile(r"([a-z_]+(?:\.\w+)*)(?=: |=\S| '[^']*': )|([a-z_]+(?:\.\w+)+)(?= \S+: )")
PLACED = re.compile(r"\S+:\d+(:\d+)?:? ")  # a message that says itself where in a file


@dataclass(frozen=True)
class Written:
    """Where a section stands in a recipe, and the ``places`` of all keys of that recipe, whose top is ``root``. No
    field is compared: sections that say the same are equal wherever they stand.
    """

    path: Path = field(default=(), compare=False)
    places: Mapping[Path, Any] = field(default_factory=dict, compare=False)
    root: type[BaseModel] = field(default=BaseModel, compare=False)

    def place(self, path: Path) -> str:
        """The place of a key, or of what it would stand in where it is not written."""
        while path not in self.places:
            path = path[:-1]
        return str(self.places[path])


NOWHERE = Written()


def mark(recipe: BaseModel, places: Mapping[Path, Any]) -> None:
    """Let every section and node of a recipe know where it is written; what is not written stays as it is, as a
    default is shared by all recipes."""
    _mark(recipe, Written((), places, type(recipe)))


def _mark(value: Any, at: Written) -> None:
    if at.path not in at.places:
        return
    if isinstance(value, tuple | list):
        parts: Any = enumerate(value)
    elif isinstance(value, BaseModel):
        if hasattr(value, "_written"):
            value._written = at
        parts = value
    else:
        return
    for key, part in parts:
        own = key == "params" and isinstance(value, BaseModel) and hasattr(value, "params")
        _mark(part, at if own else Written((*at.path, key), at.places, at.root))


@contextmanager
def blaming(section: BaseModel, *keys: str | int) -> Iterator[None]:
    """Let a ``UserError`` inside say where ``section``, or its ``keys``, is written in the recipe.

    A message that begins with a key of the section or of the recipe ("layers: …", "model.tuned: …") is of that key. Of
    a whole recipe, a mistake that a plugin tells is of the plugin's node. One that has a place already keeps it.
    """
    try:
        yield
    except UserError as error:
        if not error.placed and _written(section).places:
            error.args, error.placed = (_told(error, section, keys),), True
        raise


def wrong(section: BaseModel, key: str, message: str) -> UserError:
    """The mistake in a ``key`` of a section, told with its place."""
    try:
        with blaming(section, key):
            raise UserError(message)
    except UserError as error:
        return error


def _told(error: UserError, section: BaseModel, keys: Path) -> str:
    message, written = str(error), _written(section)
    if PLACED.match(message):
        return message
    whole = not (written.path or keys)
    if whole and (plugin := _plugin_of(error)) is not None:
        section, written, whole = plugin.params, _written(plugin.params), False
        message = message.removeprefix(f"{plugin.name}: ")
    head = HEAD.match(message)
    names = tuple(int(name) if name.isdecimal() else name for name in head[0].split(".")) if head else ()
    if head and not whole and names[0] in _fields(section):
        keys, rest = names, message[head.end() :]
    elif head and names[0] in written.root.model_fields:
        return f"{written.place(names)} {message}"
    elif whole:
        return message
    else:
        rest = f": {message}"
    path = (*written.path, *keys)
    return f"{written.place(path)} {'.'.join(map(str, path))}{rest}"


def _written(section: BaseModel) -> Written:
    return getattr(section, "_written", NOWHERE)


def _fields(section: BaseModel) -> Mapping[str, Any]:
    holder: BaseModel = getattr(section, "params", section)
    return type(holder).model_fields


def _plugin_of(error: BaseException) -> Any:
    """The innermost plugin that was at work, of those that a recipe's node made."""
    owners = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    made = (each for each in reversed(owners) if getattr(type(each), "kind", None) and hasattr(each, "params"))
    return next((each for each in made if _written(each.params).places), None)
