"""A pydantic model as tables: each key with its type, choices, bounds, default and meaning."""

from __future__ import annotations

from inspect import cleandoc

from pydantic import BaseModel

from eval_suite.site import prose
from factory.describe import parameters

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


def nested(model: type[BaseModel]) -> list[tuple[str, type[BaseModel]]]:
    """Keys whose values are mappings of their own, with their models."""
    return [(parameter.key, inner) for parameter in parameters(model) for inner in parameter.inner]


def table(model: type[BaseModel], root: str) -> str:
    """One line a key; empty for a model without keys."""
    if not model.model_fields:
        return ""
    lines = ["| key | type | default | meaning |", "|:---|:---|:---|:---|"]
    for name, type_, default, _ in parameters(model, code=lambda word: f"`{word}`"):
        told = prose.cell(prose.text(meaning(name, model), root))
        lines.append(f"| `{name}` | {type_} | {default or '**needed**'} | {told} |")
    return "\n".join(lines)


def meaning(name: str, model: type[BaseModel]) -> str:
    """What a key means; empty where nothing says so."""
    return prose.meaning(name, said(model)) or COMMON.get(name, "")


def said(model: type[BaseModel]) -> str:
    """The docstrings of a model and of the project's models that it inherits."""
    own = [cleandoc(cls.__doc__ or "") for cls in model.__mro__ if issubclass(cls, BaseModel) and cls.model_fields]
    return "\n\n".join(own)
