"""What a plugin is, for ``list KIND NAME``: its docstring, its parameters and a node that names it."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from factory.registry import lookup

TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
WRITTEN = 60  # characters of a default that are shown in full
NODES = {
    "steering": "steering: [none, {}]",
    "diagnostic": "diagnostic: {}",
    "benchmark": "data: {}",
    "tuner": "tune: {{tuner: {}, data: …}}",
    "connector": "model: {{compose: {{connector: {}, …}}}}",
    "vision_encoder": "model: {{compose: {{vision_encoder: {}, …}}}}",
    "llm": "model: {{compose: {{llm: {}, …}}}}",
    "report": "report: {{also: [{}]}}",
}
"""How a recipe names a plugin of a kind; those of other kinds are found by what they are for."""


def describe_plugin(kind: str, name: str) -> str:
    """All that is known of a plugin, as text. Raises ``UserError`` for one that there is not."""
    cls = lookup(kind, name)
    params = cls.Params if isinstance(getattr(cls, "Params", None), type) else None
    parts = [f"{kind} {name}, in {_place(cls)}", *_told(cls, params)]
    if params and params.model_fields:
        parts.append("\n".join(["Parameters:", *_table(params)]))
    if kind in NODES:
        parts.append(f"In a recipe:\n  {NODES[kind].format(_node(name, params))}")
    return "\n\n".join(parts)


def _place(cls: type) -> str:
    file = Path(inspect.getfile(cls))
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _told(cls: type, params: type[BaseModel] | None) -> Iterator[str]:
    """The docstrings of its module, of the class and of its parameters."""
    for about in (sys.modules[cls.__module__].__doc__, cls.__doc__, params and params.__doc__):
        if about and about.strip():
            yield inspect.cleandoc(about)


def _table(params: type[BaseModel]) -> Iterator[str]:
    rows = list(_rows(params))
    wide = max(len(key) for key, _ in rows)
    return (f"  {key:<{wide}}  {told}" for key, told in rows)


def _rows(params: type[BaseModel], inside: str = "") -> Iterator[tuple[str, str]]:
    """Each key with its default and type; those of a mapping stand under its name."""
    for key, type_, default, inner in parameters(params):
        if inner:
            yield from _rows(inner[-1], f"{inside}{key}.")
        else:
            yield f"{inside}{key}", f"{'needed' if default is None else f'default {default}'}; {type_}"


class Parameter(NamedTuple):
    """A key of a model with the values that it takes and its default, None where a recipe has to say it, in words;
    ``inner`` are the models of a value that is a mapping of its own.
    """

    key: str
    values: str
    default: str | None
    inner: tuple[type[BaseModel], ...]


def parameters(model: type[BaseModel], code: Callable[[str], str] = str) -> Iterator[Parameter]:
    """The keys of a model; what is written in a recipe as it stands goes through ``code``."""
    schema = model.model_json_schema()
    for key, value in schema.get("properties", {}).items():
        default = None if key in schema.get("required", ()) else _default(value, code)
        yield Parameter(key, _type(value, schema, code), default, _inner(model, key))


def _inner(model: type[BaseModel], key: str) -> tuple[type[BaseModel], ...]:
    field = model.model_fields.get(key)
    types = (field.annotation, *getattr(field.annotation, "__args__", ())) if field else ()
    return tuple(t for t in types if isinstance(t, type) and issubclass(t, BaseModel) and t.__name__ != "Node")


def _node(name: str, params: type[BaseModel] | None) -> str:
    needed = [key for key, field in (params.model_fields if params else {}).items() if field.is_required()]
    return f"{{type: {name}, {', '.join(f'{key}: …' for key in needed)}}}" if needed else name


def _type(property_: Mapping[str, Any], schema: Mapping[str, Any], code: Callable[[str], str]) -> str:
    """A JSON schema's property in words, with its choices and bounds."""
    words = partial(_type, schema=schema, code=code)
    if "$ref" in property_:
        name = property_["$ref"].rpartition("/")[2]
        if name == "Node":
            return "a plugin"
        inner = schema.get("$defs", {}).get(name, {})
        return words(inner) if "enum" in inner else "a mapping, see below"
    if "anyOf" in property_:
        return ", or ".join(dict.fromkeys(words(each) for each in property_["anyOf"]))
    if "const" in property_:
        return code(str(property_["const"]))
    if "enum" in property_:
        return ", ".join(code(str(choice)) for choice in property_["enum"])
    if property_.get("type") == "array":
        items = property_.get("prefixItems") or [property_.get("items", {})]
        listed = " and ".join(dict.fromkeys(words(each) for each in items))
        return f"list of {_plural(listed)}" if listed else "list"
    if property_.get("type") == "object":
        return "a mapping"
    bounds = " and ".join(f"{sign} {property_[key]:,}" for key, sign in BOUNDS.items() if key in property_)
    return " ".join(part for part in (TYPES.get(property_.get("type", ""), "any"), bounds) if part)


def _plural(words: str) -> str:
    """ "number > 0" as "numbers > 0"; other words as they are."""
    return re.sub(r"^(whole number|number|text)\b", r"\1s", words).replace("a plugin", "plugins")


def _default(property_: Mapping[str, Any], code: Callable[[str], str]) -> str:
    """A property's default as a recipe would write it."""
    value = property_.get("default")
    if isinstance(value, Mapping):
        return code(str(value["type"])) if "type" in value else "see below"
    written = json.dumps(value, ensure_ascii=False).strip('"')
    return code(written if len(written) <= WRITTEN else f"{written[:WRITTEN]}…")
