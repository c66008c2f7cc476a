"""A pydantic model as tables: each key with its type, choices, bounds, default and meaning."""

from __future__ import annotations

from pydantic import BaseModel

from eval_suite.site import prose
from factory.describe import default_in_words, nested, type_in_words

COMMON = {
    "split": "which of the released splits is asked",
    "seed": "decides what is drawn at random",
    "batch_size": "how many prompts are run at once",
}
"""What keys of these names mean wherever a docstring says nothing more."""


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
        lines.append(
            f"| `{name}` | {type_in_words(property_, schema)} | {default_in_words(property_, required)} | {told} |"
        )
    return "\n".join(lines)


def meaning(name: str, model: type[BaseModel]) -> str:
    """What a key means; empty where nothing says so."""
    return prose.meaning(name, said(model)) or COMMON.get(name, "")


def said(model: type[BaseModel]) -> str:
    """The docstrings of a model and of the project's models that it inherits."""
    own = [cls.__doc__ or "" for cls in model.__mro__ if issubclass(cls, BaseModel) and cls.model_fields]
    return "\n\n".join(own)
