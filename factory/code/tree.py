"""What a definition reaches by the names it uses, over the files of some packages, and a digest of all of it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from factory.code.source import Module, Used, dotted, is_register, members, own_names, parsed
from factory.registry import KINDS

GROUND = ("factory.errors", "factory.registry", "factory.recipe")
"""Modules that name, word and check, and compute no number: they are not followed."""

Place = tuple[str, str]
"""A definition: its module and its name there."""


class Text(NamedTuple):
    """What counts of a definition: the hash of its own text, the definitions that it names, the attributes it asks
    for."""

    hash: str
    reached: list[Place]
    asked: set[str]


class Tree:
    """Packages by name with their folders, and single ``files`` by module name, beside which further modules may lie.

    Files are read when they are reached, and again when their size or time has changed.
    """

    def __init__(self, rooms: Mapping[str, Path], files: Mapping[str, Path] | None = None) -> None:
        self.rooms, self.files = dict(rooms), dict(files or {})
        self._read: dict[str, tuple[tuple[str, int, int], Module]] = {}
        self._found: dict[tuple[str, str], tuple[Place, tuple[str, ...]] | None] = {}
        self._texts: dict[Place, Text] = {}
        self._reached: dict[tuple[Place, tuple[str, ...], tuple[str, ...]], dict[Place, Text]] = {}

    def has(self, module: str, name: str) -> bool:
        """Whether there is such a definition."""
        self._refresh()
        found = self._module(module)
        return found is not None and name in found.definitions

    def digest(self, module: str, name: str, only: Collection[str] = (), leave: Collection[str] = ()) -> str:
        """Digest of the definition ``name`` of ``module`` and of all that it reaches; of a class that of its members
        ``only``, or of all but those to ``leave`` and what they alone ask for."""
        told = sorted(f"{place[1]}:{text.hash}" for place, text in self.reached(module, name, only, leave).items())
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]

    def asks(self, module: str, name: str, names: Collection[str], leave: Collection[str] = ()) -> bool:
        """Whether a definition, or one that it reaches, asks for one of the attributes ``names``."""
        return any(text.asked & set(names) for text in self.reached(module, name, (), leave).values())

    def reached(
        self, module: str, name: str, only: Collection[str] = (), leave: Collection[str] = ()
    ) -> dict[Place, Text]:
        """The definitions that ``digest`` covers."""
        self._refresh()
        key = ((module, name), tuple(only), tuple(leave))
        if key not in self._reached:
            self._reached[key] = self._walk(*key)
        return self._reached[key]

    def _walk(self, start: Place, only: Collection[str], leave: Collection[str]) -> dict[Place, Text]:
        line = self._lineage(start)
        kept = self._kept(line, only, leave)
        told: dict[Place, Text] = {}
        queue = [start]
        while queue:
            place = queue.pop()
            if place not in told:
                told[place] = self._told(place, kept) if place in line else self._text(place)
                queue += told[place].reached
        return told

    def _refresh(self) -> None:
        if any(self._stamp(module.path) != stamp for stamp, module in self._read.values()):
            for memory in (self._read, self._found, self._texts, self._reached):
                memory.clear()

    @staticmethod
    def _stamp(path: Path) -> tuple[str, int, int] | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        return str(path), stat.st_size, stat.st_mtime_ns

    def _module(self, name: str) -> Module | None:
        if name not in self._read:
            path = self._file(name)
            stamp = self._stamp(path) if path else None
            if path is None or stamp is None:
                return None
            try:
                self._read[name] = stamp, parsed(name, path, stamp)
            except (SyntaxError, ValueError):  # no Python: a compiled module, or a file that nothing imports
                return None
        return self._read[name][1]

    def _known(self, place: Place) -> Module:
        """The module of a definition that was found."""
        module = self._module(place[0])
        if module is None:
            raise LookupError(f"{place[0]} is gone")
        return module

    def _file(self, name: str) -> Path | None:
        if name in self.files:
            return self.files[name]
        top, *rest = name.split(".")
        folders = [self.rooms[top]] if top in self.rooms else [file.parent / top for file in self.files.values()]
        for base in (folder.joinpath(*rest) for folder in folders):
            for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
                if path.is_file():
                    return path
        return None

    def _resolve(self, module: Module, name: str) -> tuple[Place, tuple[str, ...]] | None:
        """The definition of the project that a dotted name of ``module`` stands for, and the attributes asked of it."""
        key = (module.name, name)
        if key not in self._found:
            self._found[key] = None  # for imports that run in a circle
            self._found[key] = self._follow(module, name.split("."))
        return self._found[key]

    def _follow(self, module: Module, names: list[str]) -> tuple[Place, tuple[str, ...]] | None:
        head, *rest = names
        if head in module.definitions:
            return (module.name, head), tuple(rest)
        if head in module.imports:
            source, inner = module.imports[head]
            return self._inside(source, [inner, *rest] if inner else rest)
        return next((found for star in module.stars if (found := self._inside(star, names))), None)

    def _inside(self, source: str, names: list[str]) -> tuple[Place, tuple[str, ...]] | None:
        if source.startswith(GROUND) or not names or (module := self._module(source)) is None:
            return None
        return self._resolve(module, ".".join(names)) or self._inside(f"{source}.{names[0]}", names[1:])

    def _text(self, place: Place) -> Text:
        if place not in self._texts:
            self._texts[place] = self._told(place)
        return self._texts[place]

    def _told(self, place: Place, kept: Collection[str] | None = None) -> Text:
        """What counts of a definition; of a class with those of its members that are ``kept``, or all."""
        module = self._known(place)
        statements = module.definitions[place[1]]
        forms = [form for statement in statements for form in module.parts(statement, kept)]
        names = sorted(set().union(*(form.uses for form in forms)))
        found = {name: there for name in names if (there := self._resolve(module, name))}
        true = {name: ".".join((at[1], *rest)) for name, (at, rest) in found.items()}
        pieces = (true.get(p, p) if isinstance(p, Used) else p for form in forms for p in form.pieces)
        looked_up = (p for s in statements if "lookup" in names for p in self._looked_up(s))
        return Text(
            hashlib.sha256("".join(pieces).encode()).hexdigest(),
            [*(at for at, _ in found.values()), *self._bases(place), *looked_up],
            set().union(*(form.asked for form in forms)),
        )

    def _looked_up(self, statement: ast.stmt) -> Iterator[Place]:
        """Plugins of the project that a statement looks up by constant kind and name."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and (dotted(node.func) or "").rpartition(".")[2] == "lookup":
                match [getattr(each, "value", None) for each in node.args]:
                    case [str(kind), str(name)] if kind in KINDS and (module := self._module(f"{KINDS[kind]}.{name}")):
                        yield from ((module.name, each) for each in module.definitions if _registers(module, each))

    def _class(self, place: Place) -> ast.ClassDef | None:
        last = self._known(place).definitions[place[1]][0]
        return last if isinstance(last, ast.ClassDef) else None

    def _lineage(self, place: Place) -> list[Place]:
        """A class and its base classes of the project; of another definition nothing."""
        if self._class(place) is None:
            return []
        return [place, *(each for base in self._bases(place) for each in self._lineage(base))]

    def _bases(self, place: Place) -> list[Place]:
        """The base classes of a class; one whose name it takes (``class Method(Method)``) is the imported one."""
        cls, module = self._class(place), self._module(place[0])
        assert module is not None
        found = [self._resolve(module, name) for base in (cls.bases if cls else ()) if (name := dotted(base))]
        if any(each and each[0] == place for each in found):
            source, inner = module.imports.get(place[1], (place[0], None))
            found = [self._inside(source, [inner] if inner else []) if e and e[0] == place else e for e in found]
        return [each[0] for each in found if each and each[0] != place]

    def _kept(self, line: list[Place], only: Collection[str], leave: Collection[str]) -> set[str]:
        """Names of the members that count, of a class and its bases."""
        bodies: dict[str, list[ast.stmt]] = {}
        for place in line:
            cls = self._class(place)
            for name, statements in members(cls).items() if cls else ():
                bodies.setdefault(name, []).extend(statements)
        asked = set().union(*(own_names(bodies[name]) for name in leave if name in bodies))
        kept = set(only) or {n for n in bodies if n not in leave and not (n in asked and _is_private(n))}
        while more := set().union(*(own_names(bodies[n]) for n in kept if n in bodies)) & set(bodies) - kept:
            kept |= more
        return kept


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _registers(module: Module, name: str) -> bool:
    first = module.definitions[name][0]
    return isinstance(first, ast.ClassDef) and any(map(is_register, first.decorator_list))
