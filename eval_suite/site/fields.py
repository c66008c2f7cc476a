"""A pydantic model as tables: each key with its type, choices, bounds, default and meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from eval_suite.site import prose

TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
COMMON = {
    "split": "which of the released splits is asked",
    "seed": "decides what is drawn at random",
    "batch_size": "how many prompts are run at once",
}
"""What keys of these names mean wherever a docstring says nothing more."""
WRITTEN = 60  # characters of a default that are shown in full


def tables(model: type[BaseModel], root: str, level: int = 3) -> str:
    """The table of a model's keys and what its docstring says, then those of the models inside it."""
    parts = [table(model, root)]
    for name, inner in nested(model):
        parts += [f"{'#' * level} `{name}`", prose.markdown(said(inner), root), table(inner, root)]
    return "\n\n".join(part for part in parts if part)


def table(model: type[BaseModel], root: str) -> str:
    """One line a key; empty for a model without keys."""
    if not model.model_fields:
        return ""
    schema = model.model_json_schema()
    lines = ["| key | type | default | meaning |", "|:---|:---|:---|:---|"]
    for name, property_ in schema["properties"].items():
        told = prose.cell(prose.text(meaning(name, model), root))
        required = name in schema.get("required", ())
        lines.append(f"| `{name}` | {kind(property_, schema)} | {default(property_, required)} | {told} |")
    return "\n".join(lines)


def meaning(name: str, model: type[BaseModel]) -> str:
    """What a key means; empty where nothing says so."""
    return prose.meaning(name, said(model)) or COMMON.get(name, "")


def said(model: type[BaseModel]) -> str:
    """The docstrings of a model and of the project's models that it inherits."""
    own = [cls.__doc__ or "" for cls in model.__mro__ if issubclass(cls, BaseModel) and cls.model_fields]
    return "\n\n".join(own)


def nested(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Keys whose values are mappings of their own, with their models."""
    for name, field in model.model_fields.items():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel) and inner.__name__ != "Node":
                yield name, inner


def kind(property_: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A property's type in words, with its choices and bounds."""
    if "$ref" in property_:
        name = property_["$ref"].rpartition("/")[2]
        if name == "Node":
            return "a plugin"
        inner = schema.get("$defs", {}).get(name, {})
        return kind(inner, schema) if "enum" in inner else "a mapping, see below"
    if "anyOf" in property_:
        options = list(dict.fromkeys(kind(each, schema) for each in property_["anyOf"]))
        return ", or ".join(options)
    if "const" in property_:
        return f"`{property_['const']}`"
    if "enum" in property_:
        return ", ".join(f"`{choice}`" for choice in property_["enum"])
    if property_.get("type") == "array":
        items = property_.get("prefixItems") or [property_.get("items", {})]
        inner = " and ".join(dict.fromkeys(kind(each, schema) for each in items))
        return f"list of {_plural(inner)}" if inner else "list"
    if property_.get("type") == "object":
        return "a mapping"
    bounds = " and ".join(f"{sign} {property_[key]:,}" for key, sign in BOUNDS.items() if key in property_)
    return " ".join(part for part in (TYPES.get(property_.get("type", ""), "any"), bounds) if part)


def _plural(words: str) -> str:
    """ "number > 0" as "numbers > 0"; other words as they are."""
    return re.sub(r"^(whole number|number|text)\b", r"\1s", words).replace("a plugin", "plugins")


def default(property_: Mapping[str, Any], required: bool) -> str:
    """A property's default as a recipe would write it."""
    if required:
        return "**needed**"
    value = property_.get("default")
    if isinstance(value, Mapping):
        return f"`{value['type']}`" if "type" in value else "see below"
    written = json.dumps(value, ensure_ascii=False).strip('"')
    return f"`{written}`" if len(written) <= WRITTEN else f"`{written[:WRITTEN]}…`"
