"""The recipe's plugin nodes: ``{type: amps, beta: 0.5}`` read against the plugin's own parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from unicodedata import normalize

from pydantic import BeforeValidator, SerializeAsAny, ValidationError, model_serializer

from factory.errors import UserError, quoted
from factory.recipe.explain import Loc, explain, refusal, told_in_one_line
from factory.registry import Params, lookup

LONGEST = 80  # characters of a label: rows and file names hold it beside other words


Section = TypeVar("Section")


class Spec(Params):
    """Base of the recipe's own sections: as strict as a plugin's parameters."""


class Node(Spec):
    """A plugin with its parameters: ``{type: amps, beta: 0.5}``, or the bare word ``amps``.

    ``label`` names it in results; it is the recipe's ``as:`` key, else the type.
    """

    kind: str
    type: str
    params: SerializeAsAny[Params]
    label: str

    @property
    def plugin(self) -> Any:
        """The plugin's class."""
        return lookup(self.kind, self.type)

    def make(self) -> Any:
        """The plugin with its parameters."""
        return self.plugin(self.params)

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        head = {"type": self.type} | ({"as": self.label} if self.label != self.type else {})
        return head | self.params.model_dump(mode="json")


def given(section: Section | None) -> Section:
    """A section that a recipe may leave out, where whoever asks is only called for recipes that have it."""
    assert section is not None, "a recipe without this section has no such work"
    return section


def read_node(kind: str, raw: Any, context: Any = None) -> Node:
    """The plugin node that ``raw`` describes; ``context`` is pydantic's, for the validators of its parameters. Raises
    pydantic's ValidationError with every mistake in it.
    """
    if isinstance(raw, Node):
        return raw
    options = {"type": raw} if isinstance(raw, str) else dict(raw) if isinstance(raw, dict) else {}
    plugin = options.pop("type", None)
    label = options.pop("as", plugin)
    if not isinstance(plugin, str):
        raise refusal([((), f"should name a {kind} plugin, as in 'type: NAME' or the bare NAME")])
    try:
        model = lookup(kind, plugin).Params
    except UserError as error:
        raise refusal([(("type",), str(error))]) from error
    mistakes: list[tuple[Loc, str]] = [(("as",), why)] if (why := label_fault(label)) else []
    try:
        params = model.model_validate_json(json.dumps(options), strict=True, context=context)
    except ValidationError as error:
        mistakes += explain(error, model)
    if mistakes:
        raise refusal(mistakes)
    return Node(kind=kind, type=plugin, params=params, label=label)


def node_of(kind: str, raw: Any) -> Node:
    """As ``read_node``, of a node that stands in no recipe. Raises ``UserError`` with every mistake in one line."""
    told = dict(raw) if isinstance(raw, Mapping) else raw
    name = told.get("type") if isinstance(told, dict) else told
    with told_in_one_line(f"{kind} {quoted(name)}" if isinstance(name, str) else kind, Spec):
        return read_node(kind, told)


def label_fault(label: Any) -> str | None:
    """Why something cannot name a node in tables and files, or None."""
    if not isinstance(label, str) or not label.strip():
        return "should be a name"
    if len(label) > LONGEST:
        return f"should be a name of at most {LONGEST} characters, and has {len(label):,}"
    if not label.isprintable() or label != label.strip():
        return f"should be a name of visible characters alone, got {label!a}"
    return None


@dataclass(frozen=True)
class PluginNode(BeforeValidator):
    """What makes a field a plugin node of a ``kind``, in its annotation."""

    kind: str = ""


def plugin(kind: str) -> PluginNode:
    """The annotation of a plugin node of a kind."""
    return PluginNode(lambda raw, info: read_node(kind, raw, info.context), kind=kind)


def seen_as(label: str) -> str:
    """What two labels share that a reader or a file system may take for one."""
    return normalize("NFKC", label).casefold()


def distinct_labels(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Refuses two nodes of one name, or of names that look like one."""
    labels = [node.label for node in nodes]
    seen = [seen_as(label) for label in labels]
    again = [(i, labels[seen.index(name)]) for i, name in enumerate(seen) if name in seen[:i]]
    if again:
        raise refusal(((i,), f"another one is called '{label}' too; name one with 'as:'") for i, label in again)
    return nodes


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuses a value named twice."""
    if len(set(values)) < len(values):
        raise ValueError("should name each value once")
    return values
