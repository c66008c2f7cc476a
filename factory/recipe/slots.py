"""Where a recipe expects plugin nodes, as the annotations of its sections and of the plugins' parameters have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from factory.recipe.nodes import PluginNode
from factory.registry import lookup

Path = tuple[str | int, ...]


def kind_at(model: type[BaseModel], path: Path, named: Callable[[Path], str | None]) -> str | None:
    """The kind of plugin that stands at ``path`` of what ``model`` describes, None where there stands none.

    ``named(path)`` is the plugin that a node on the way names. Raises ``UserError`` where there is no such plugin.
    """
    here: Any = model
    for done, step in enumerate(path):
        if kind := _kind(here):
            name = named(path[:done])
            here = lookup(kind, name).Params if name is not None else None
        here = _inside(here, step)
    return _kind(here)


def _forms(annotation: Any) -> Iterator[Any]:
    """What a value may be, the alternatives of unions one by one."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _forms(each)
    elif origin is Annotated and not any(isinstance(note, PluginNode) for note in annotation.__metadata__):
        yield from _forms(get_args(annotation)[0])
    else:
        yield annotation


def _kind(annotation: Any) -> str | None:
    notes = (note for form in _forms(annotation) if get_origin(form) is Annotated for note in form.__metadata__)
    return next((note.kind for note in notes if isinstance(note, PluginNode)), None)


def _inside(annotation: Any, step: str | int) -> Any:
    """What stands under a key, or at a place in a list; None where nothing can."""
    for form in _forms(annotation):
        origin, args = get_origin(form), get_args(form)
        if isinstance(step, int) and origin in (tuple, list):
            return args[0] if len(args) == 1 or Ellipsis in args else args[step] if step < len(args) else None
        if isinstance(form, type) and issubclass(form, BaseModel) and step in form.model_fields:
            field = form.model_fields[str(step)]
            return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            return args[1]
    return None
