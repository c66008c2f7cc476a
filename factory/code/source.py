"""Source files as named definitions: what each uses, and a form of it that no reformat changes."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

SILENT = ("annotation", "returns", "type_comment", "type_params", "ctx", "kind", "lineno")
"""Fields of a syntax tree that do not change what a definition computes (``kind``: the u of u"...")."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Module:
    """One source file. ``definitions`` are its top-level statements by the names they bind, or that they change;
    ``imports`` (module, name in it or None) by the name they are known under, those inside functions included."""

    name: str
    path: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    forms: dict[int, Form] = field(default_factory=dict)

    def parts(self, statement: ast.stmt, kept: Collection[str] | None = None) -> list[Form]:
        """What counts of a top-level statement; of a class with those of its members that are ``kept``, or all."""
        if not isinstance(statement, ast.ClassDef):
            return [self._form(statement, statement)]
        own = bound(statement.body)
        body = (each for each in statement.body if not _is_idle(each))
        body = (each for each in body if kept is None or (bound([each]) or {""}) & set(kept))
        return [self._form(statement, _head(statement)), *(self._form(each, each, own) for each in body)]

    def _form(self, key: ast.AST, node: ast.AST, own: Collection[str] = ()) -> Form:
        if id(key) not in self.forms:
            names = uses(node) if isinstance(node, FUNCTIONS) else _without(uses(node), own)
            asked = frozenset(each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute))
            self.forms[id(key)] = Form(tuple(canonical(node)), frozenset(names), asked)
        return self.forms[id(key)]


class Form(NamedTuple):
    """A statement's canonical pieces, the names it takes from outside, and the attributes it asks for."""

    pieces: tuple[str, ...]
    uses: frozenset[str]
    asked: frozenset[str]


@lru_cache(maxsize=1024)
def parsed(name: str, path: Path, stamp: object) -> Module:
    """The module ``name`` in the file ``path``, read again where its ``stamp`` is another. Raises SyntaxError where it
    does not parse.
    """
    module = Module(name, path)
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known = alias.asname or alias.name.partition(".")[0]
                module.imports[known] = (alias.name if alias.asname else known, None)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, package)
            module.stars += [source for alias in node.names if alias.name == "*"]
            module.imports |= {a.asname or a.name: (source, a.name) for a in node.names if a.name != "*"}
    loose = []
    for statement in tree.body:
        names = bound([statement])
        for each in names:
            module.definitions.setdefault(each, []).append(statement)
        if not names:
            loose.append(statement)
    for statement in loose:  # it changes what it names: Model.part = other, AutoModel.register(Model)
        for name_ in sorted({used.partition(".")[0] for used in uses(statement)} & set(module.definitions)):
            module.definitions[name_].append(statement)
    return module


def _absolute(node: ast.ImportFrom, package: str) -> str:
    above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def bound(body: Iterable[ast.AST]) -> set[str]:
    """Names that statements bind in their own scope, imports aside."""
    found: set[str] = set()
    shared: set[str] = set()
    stack = list(body)
    while stack:
        node = stack.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                found.add(node.id)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            shared |= set(node.names)
        elif not isinstance(node, (ast.Lambda, *COMPREHENSIONS, ast.Import, ast.ImportFrom)):
            if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
                found.add(node.name)
            stack += ast.iter_child_nodes(node)
    return found - shared


def dotted(node: ast.AST) -> str | None:
    """``"a.b.c"`` of a name or of attributes of one; else None."""
    if isinstance(node, ast.Name):
        return node.id
    if not isinstance(node, ast.Attribute):
        return None
    inner = dotted(node.value)
    return inner and f"{inner}.{node.attr}"


def uses(node: ast.AST) -> set[str]:
    """Dotted names that a node takes from outside its own scopes, annotations aside."""
    if (name := dotted(node)) is not None:
        return {name} if isinstance(node, ast.Attribute) or isinstance(getattr(node, "ctx", None), ast.Load) else set()
    inner = set().union(*(uses(child) for child in children(node)))
    if isinstance(node, (*FUNCTIONS, ast.Lambda)):
        body = node.body if isinstance(node.body, list) else [node.body]
        return _without(inner, _arguments(node.args) | bound(body))
    if isinstance(node, COMPREHENSIONS):
        return _without(inner, bound(generator.target for generator in node.generators))
    if isinstance(node, ast.ClassDef):  # its own names are seen by its statements, not by its functions
        own, head = bound(node.body), set().union(*(uses(c) for c in children(node) if c not in node.body))
        within = (uses(c) if isinstance(c, FUNCTIONS) else _without(uses(c), own) for c in node.body)
        return head.union(*within)
    return inner


def _arguments(taken: ast.arguments) -> set[str]:
    named = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs]
    return {each.arg for each in (*named, taken.vararg, taken.kwarg) if each}


def _without(names: set[str], heads: Collection[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] not in heads}


def children(node: ast.AST) -> Iterator[ast.AST]:
    """Child nodes that count: no annotations, no bare constants (docstrings), no imports."""
    for name, value in ast.iter_fields(node):
        if name not in SILENT:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_idle(child):
                    yield child


def _is_idle(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass))


class Used(str):
    """A dotted name in a canonical form."""

    __slots__ = ()


def canonical(node: object) -> Iterator[str]:
    """A node as pieces of text, without places, annotations and docstrings; what it names is ``Used``."""
    if isinstance(node, (ast.Name, ast.Attribute)) and (name := dotted(node)):
        yield Used(name)
    elif isinstance(node, ast.AST):
        if isinstance(node, ast.AnnAssign) and node.value:  # without its annotation another assignment
            node = ast.Assign([node.target], node.value)
        if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts between its parts
            node = ast.JoinedStr([each for each in node.values if getattr(each, "value", None) != ""])
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            if name not in SILENT and value not in (None, []):
                yield f"{name}="
                yield from canonical(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for each in node:
            if not (isinstance(each, ast.AST) and _is_idle(each)):
                yield from canonical(each)
                yield ";"
        yield "]"
    else:
        yield f"{type(node).__name__}:{node!r}"


def _head(cls: ast.ClassDef) -> ast.ClassDef:
    """A class without its body, and without ``@register``: under which name it is found says nothing of what it
    does."""
    fields = {**dict(ast.iter_fields(cls)), "body": []}
    fields["decorator_list"] = [each for each in cls.decorator_list if not is_register(each)]
    return ast.ClassDef(**fields)


def is_register(node: ast.expr) -> bool:
    """Whether a decorator makes a plugin of a class."""
    return isinstance(node, ast.Call) and (dotted(node.func) or "").rpartition(".")[2] == "register"


def members(cls: ast.ClassDef) -> dict[str, list[ast.stmt]]:
    """The statements of a class by the names they bind; what binds none stands under ""."""
    found: dict[str, list[ast.stmt]] = {}
    for statement in cls.body:
        for name in bound([statement]) or {""}:
            found.setdefault(name, []).append(statement)
    return found


def own_names(body: Iterable[ast.stmt]) -> set[str]:
    """Attributes of ``self``, ``cls`` and ``super()`` that statements ask for."""
    found = set()
    for node in (node for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.Attribute):
            of = node.value
            asked = of.func if isinstance(of, ast.Call) else of
            if isinstance(asked, ast.Name) and asked.id in ("self", "cls", "super"):
                found.add(node.attr)
    return found
