"""YAML text to plain data that remembers where every key and value stood.

The scalars follow YAML 1.2 rather than PyYAML's 1.1: ``1e-5`` is a number, only true and false are booleans, so that
``no``, ``on``, ``1:30`` and ``2024-01-01`` are the strings they look like.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

Path = tuple[str | int, ...]
AnyNode = TypeVar("AnyNode", bound=Node)

DEEPEST, LARGEST = 64, 20_000  # levels and nodes of a recipe
LONGEST = 1 << 18  # characters of a recipe

_TOO_MUCH = f"more than {DEEPEST} levels or {LARGEST:,} values, which no recipe needs"
_TAG = "tag:yaml.org,2002:"
HINTS = {
    "mapping values are not allowed": "Indent the line as those above it, and put a text with ': ' in it in quotes",
    "'\\t'": "Indent with spaces, not with a tab",
    "expected <block end>": "The items of a list, and the keys of a section, all start in one column",
    "could not find expected ':'": "A key reads 'KEY: VALUE', an item of a list '- VALUE', each with its space",
    "expected ',' or": "A list or mapping in brackets is not closed",
    "unexpected end of stream": "A quote or bracket is not closed",
}
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


@dataclass(frozen=True)
class Place:
    """Where something is written: a file's line and column (from 1), or an override, which has neither."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Mistake(Exception):
    """One mistake and where it is."""

    def __init__(self, place: Place, message: str):
        super().__init__(message)
        self.place, self.message = place, message


@dataclass
class Document:
    """Plain data, the place of each key (of each item, in a list) by path, and the mistakes met while reading it.

    ``left`` values may still be read: aliases of aliases double with every line.
    """

    data: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    left: int = LARGEST

    def written(self, path: Path) -> Path:
        """The longest beginning of ``path`` that is written in the document."""
        while path not in self.places:
            path = path[:-1]
        return path


class _Loader(yaml.SafeLoader):
    """Ends a tree that is deeper or larger than any recipe's while it is read, before it fills stack or memory."""

    yaml_implicit_resolvers: ClassVar[dict] = {}  # type: ignore[misc]  # the stubs have it as the instances' own

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        if self.depth > DEEPEST or self.nodes > LARGEST:
            raise yaml.MarkedYAMLError(problem=_TOO_MUCH, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would not read back as a string."""

    yaml_implicit_resolvers: ClassVar[dict] = {  # type: ignore[misc]  # as above
        first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


def _represent_text(dumper: _Dumper, text: str) -> ScalarNode:
    breaks = any(mark in text for mark in "\x85\u2028\u2029")  # line breaks that PyYAML leaves bare and then folds away
    return dumper.represent_scalar(_TAG + "str", text, style='"' if breaks else None)


_Dumper.add_representer(str, _represent_text)
for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def parse_nodes(text: str, source: str, whole_source: bool = False) -> Node:
    """The YAML node tree of ``text``; ``whole_source`` leaves lines and columns out of its places.

    Raises Mistake at the place of a syntax error.
    """
    if len(text) > LONGEST:
        raise Mistake(Place(source), f"is {len(text):,} characters long; a recipe has at most {LONGEST:,}")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as fault:
        place = Place(source) if whole_source else Place(source, *_line_and_column(fault, text))
        raise Mistake(place, f"YAML syntax: {_syntax_message(fault)}") from fault
    start = Place(source) if whole_source else Place(source, 1, 1)
    return _placed(node, source, whole_source) if node else _null(start)


def override(root: Node, path: Path, value: Node, place: Place, promote: Callable[[Path], bool]) -> Node:
    """A copy of ``root`` with ``value`` at ``path``; mappings that are not there yet are made on the way.

    ``promote(path)`` says whether the bare word at ``path`` stands for ``{type: word}``. Raises Mistake where no key or
    index can be set, or the path is too long. Nodes that are shared through an alias are copied, so only the
    named place changes.
    """
    if len(path) > DEEPEST:
        raise Mistake(place, _TOO_MUCH)
    return _set(root, (), path, value, place, promote)


def to_document(root: Node) -> Document:
    """Plain data from a node tree. Raises Mistake where its aliases make too much of it."""
    document = Document()
    document.data = _construct(root, (), document, ())
    return document


def named_node(root: Node, path: Path) -> str | None:
    """The plugin that the node at ``path`` names: a bare word, or a mapping's ``type``."""
    node: Node | None = root
    for step in path:
        node = _child(node, step)
    node = _child(node, "type") if isinstance(node, MappingNode) else node
    return node.value if isinstance(node, ScalarNode) else None


def words(root: Node, key: str) -> list[str]:
    """The words of the list under a key of the document, of which there may be none."""
    listed = _child(root, key)
    items = listed.value if isinstance(listed, SequenceNode) else []
    return [item.value for item in items if isinstance(item, ScalarNode)]


def _child(node: Node | None, step: str | int) -> Node | None:
    if isinstance(node, SequenceNode) and isinstance(step, int):
        return node.value[step] if step < len(node.value) else None
    pairs = node.value if isinstance(node, MappingNode) else []
    return next((value for key, value in pairs if key.value == step), None)


def dump(data: Any) -> str:
    """YAML text that ``read(compose(text))`` turns back into ``data``."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _line_and_column(fault: yaml.YAMLError, text: str) -> tuple[int, int]:
    if isinstance(fault, yaml.MarkedYAMLError) and (mark := fault.problem_mark or fault.context_mark):
        return mark.line + 1, mark.column + 1
    before = text[: fault.position] if isinstance(fault, ReaderError) else ""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _syntax_message(fault: yaml.YAMLError) -> str:
    parts = [getattr(fault, "problem", None) or getattr(fault, "reason", None), getattr(fault, "context", None)]
    message = ", ".join(part for part in parts if part) or str(fault)
    return message + next((f". {hint}" for words, hint in HINTS.items() if words in message), "")


def _placed(node: Node, source: str, whole_source: bool) -> Node:
    """Give every node its place; the parser's marks know no override and hold the whole text."""
    stack, seen = [node], set()
    while stack:
        each = stack.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        mark = each.start_mark
        _at(each, Place(source) if whole_source else Place(source, mark.line + 1, mark.column + 1))
        if isinstance(each, MappingNode):
            stack += [part for pair in each.value for part in pair]
        elif isinstance(each, SequenceNode):
            stack += each.value
    return node


def _at(node: AnyNode, place: Place) -> AnyNode:
    node.place = place  # type: ignore[attr-defined]  # PyYAML's nodes have no attribute for it, and take one
    return node


def _place(node: Node) -> Place:
    return node.place  # type: ignore[attr-defined]  # as above


def _set(node: Node, done: Path, rest: Path, value: Node, place: Place, promote: Callable[[Path], bool]) -> Node:
    if not rest:
        return value
    step, after = rest[0], rest[1:]
    node = _opened(node, done, place, promote)
    if isinstance(node, SequenceNode):
        index = _index(step, len(node.value), done, place)
        node.value[index] = _set(node.value[index], (*done, index), after, value, place, promote)
        return node
    for index, (key, old) in enumerate(node.value):
        if key.value == step:
            changed = _set(old, (*done, step), after, value, place, promote)
            node.value[index] = (key if after else _word(step, place), changed)
            return node
    fresh = _set(_null(place), (*done, step), after, value, place, promote)
    node.value.append((_word(step, place), fresh))
    return node


def _opened(node: Node, done: Path, place: Place, promote: Callable[[Path], bool]) -> Node:
    """A copy of ``node`` that keys or items can be put into."""
    if isinstance(node, (MappingNode, SequenceNode)):
        node = copy.copy(node)
        node.value = list(node.value)
        return node
    if node.tag == _TAG + "null":
        pairs = []
    elif promote(done):
        pairs = [(_word("type", _place(node)), node)]
    else:
        raise Mistake(place, f"{dotted_path(done)}: is the value {node.value!r}, which holds no keys")
    return _at(MappingNode(_TAG + "map", pairs), _place(node))


def _index(step: str | int, length: int, done: Path, place: Place) -> int:
    if re.fullmatch(r"[0-9]+", str(step)) and int(step) < length:
        return int(step)
    raise Mistake(place, f"{dotted_path(done)}: is a list of {length}, counted from 0, and has no item {step}")


def _word(text: str | int, place: Place) -> ScalarNode:
    return _at(ScalarNode(_TAG + "str", str(text)), place)


def _null(place: Place) -> ScalarNode:
    return _at(ScalarNode(_TAG + "null", ""), place)


def dotted_path(path: Path) -> str:
    """``("steering", 2, "beta")`` as ``steering.2.beta``."""
    return ".".join(map(_plain, path)) or "the recipe"


def excerpt(text: str) -> str:
    """A value as a message shows it: in quotes, its beginning alone where it is long."""
    return ascii(text) if len(text) <= 60 else f"{ascii(text[:57])[:-1]}...'"


def _plain(step: str | int) -> str:
    text = str(step)
    return text if text.isprintable() and len(text) <= 60 else excerpt(text)


def _construct(node: Node, path: Path, document: Document, above: tuple[int, ...]) -> Any:
    document.places.setdefault(path, _place(node))
    document.left -= 1
    if id(node) in above:
        document.mistakes.append(Mistake(_place(node), f"{dotted_path(path)}: the alias holds itself"))
        return None
    if document.left < 0 or len(above) > DEEPEST:
        raise Mistake(_place(node), f"{dotted_path(path)}: {_TOO_MUCH}")
    above = (*above, id(node))
    if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
        return [_construct(item, (*path, index), document, above) for index, item in enumerate(node.value)]
    if isinstance(node, MappingNode) and node.tag == _TAG + "map":
        return _construct_mapping(node, path, document, above)
    if isinstance(node, ScalarNode) and node.tag.removeprefix(_TAG) in _CONVERT:
        return _construct_scalar(node, path, document)
    document.mistakes.append(Mistake(_place(node), f"{dotted_path(path)}: the tag {node.tag} is not for recipes"))
    return None


def _construct_mapping(node: MappingNode, path: Path, document: Document, above: tuple[int, ...]) -> dict[str, Any]:
    result = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode) or not _is_text(key.value):
            document.mistakes.append(Mistake(_place(key), f"{dotted_path(path)}: a key must be a single word"))
        elif key.value in result:
            first = document.places[(*path, key.value)]
            message = f"{dotted_path((*path, key.value))}: duplicate key, set already at {first}"
            document.mistakes.append(Mistake(_place(key), message))
        else:
            document.places[(*path, key.value)] = _place(key)
            result[key.value] = _construct(value, (*path, key.value), document, above)
    return result


def _construct_scalar(node: ScalarNode, path: Path, document: Document) -> Any:
    kind = node.tag.removeprefix(_TAG)
    try:
        return _CONVERT[kind](node.value)
    except ValueError:
        document.mistakes.append(Mistake(_place(node), f"{dotted_path(path)}: {excerpt(node.value)} is no {kind}"))
    except OverflowError:
        document.mistakes.append(
            Mistake(_place(node), f"{dotted_path(path)}: {excerpt(node.value)} is too large a number")
        )
    return None


def _to_int(text: str) -> int:
    if len(text) > 66:  # signs, a prefix and 64 bits, one a digit; Python itself refuses thousands of digits
        raise OverflowError(text)
    number = int(text, 10 if text.lstrip("+-").isdecimal() else 0)  # base 0 reads 0x and 0o, but refuses 010
    if not -(2**63) <= number < 2**63:
        raise OverflowError(text)
    return number


def _to_float(text: str) -> float:
    number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(number) and "inf" not in text.lower():
        raise OverflowError(text)
    return number


def _to_text(text: str) -> str:
    if not _is_text(text):
        raise ValueError(text)
    return text


def _is_text(text: str) -> bool:
    """Whether the text has a form in UTF-8; half of a surrogate pair, which an escape can write, has none."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _to_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_CONVERT: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": _to_bool,
    "int": _to_int,
    "float": _to_float,
    "str": _to_text,
}
