"""Reading benchmark files as their authors release them; what is missing or malformed is told in one line with its
path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError, quoted
from factory.recipe.paths import RecipePath

RELEASED = "Give the folder of the released files: root=FOLDER"
LONGEST_NAME = 200  # file systems have 255, and a name gets an ending


def file(root: str | Path, *names: str, source: str = "") -> Path:
    """The first of ``names`` that is a file under ``root``. Raises ``UserError`` that names them all, and their
    ``source``.
    """
    had = f". They are {source}" if source else ""
    folder = root.directory("root", f"{RELEASED}{had}") if isinstance(root, RecipePath) else Path(root).expanduser()
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"root {quoted(folder)}: {' or '.join(names)} not found; {RELEASED[0].lower()}{RELEASED[1:]}{had}")


def read_json(path: Path) -> Any:
    """What the file holds. Raises ``UserError`` for one that is no JSON, or that names a key twice (one of the two
    entries would be lost).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_keys_once)
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' occurs twice in one entry")
    return read


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in numbered(path)]


def numbered(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file with one on each line, and their lines, from 1."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # no other mark ends a line of JSON
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as lines of JSON: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=_keys_once)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not a line of JSON: {error}") from error


@dataclass(frozen=True)
class Row:
    """One entry of a released file and where it stands (file:line, or file:number of the entry, from 1).

    Its readers give a value of one kind, or raise a ``UserError`` that names the place and what stands there instead.
    """

    place: str
    values: Any

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise self.fault(f"an entry is {_shown(self.values)} where fields with names should be")

    def fault(self, why: str) -> UserError:
        return UserError(f"{self.place}: {why}; is it the released file?")

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def value(self, name: str) -> Any:
        if name not in self.values:
            raise self.fault(f"an entry has no '{name}' (it has: {', '.join(map(str, self.values))[:120]})")
        return self.values[name]

    def _must(self, holds: bool, name: str, what: str) -> None:
        if not holds:
            raise self.fault(f"'{name}' should be {what}, and is {_shown(self.values[name])}")

    def text(self, name: str, blank: bool = False) -> str:
        """A text, one that says something unless it may be ``blank``."""
        value = self.value(name)
        self._must(isinstance(value, str) and (blank or bool(value.strip())), name, "a text")
        return value

    def key(self, name: str) -> str:
        """A short text or a whole number that names something, a file maybe, as a text."""
        value = self.value(name)
        holds = isinstance(value, str) and bool(value.strip()) and value.isprintable() and len(value) <= LONGEST_NAME
        self._must(holds or (_is_whole(value) and abs(value) < 10**LONGEST_NAME), name, "a name or a number")
        return str(value)

    def whole(self, name: str, below: int | None = None) -> int:
        """A whole number from 0, less than ``below``; one that names a picture fits a name."""
        value = self.value(name)
        holds = _is_whole(value) and 0 <= value < (10**18 if below is None else below)
        self._must(holds, name, "a whole number" if below is None else f"one of 0 to {below - 1}")
        return value

    def among(self, name: str, *known: str) -> str:
        """One of the ``known`` words, or the whole number that is written so."""
        value = self.value(name)
        self._must((isinstance(value, str) or _is_whole(value)) and str(value) in known, name, " or ".join(known))
        return str(value)

    def texts(self, name: str, least: int = 1) -> list[str]:
        """A list of at least so many texts."""
        value = self.value(name)
        holds = isinstance(value, list) and len(value) >= least and all(isinstance(each, str) for each in value)
        self._must(holds, name, f"a list of {'texts' if least == 1 else f'{least} texts or more'}")
        return value

    def inner(self, name: str) -> Row:
        """An entry with fields of its own."""
        return Row(f"{self.place}, {name}", self.value(name))

    def rows(self, name: str) -> list[Row]:
        """A list of entries with fields of their own."""
        value = self.value(name)
        self._must(isinstance(value, list) and bool(value), name, "a list of entries")
        return [Row(f"{self.place}, {name}", each) for each in value]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    written = repr(value)
    return f"{written[:60]}…" if len(written) > 60 else written


def lines_of(path: Path) -> list[Row]:
    """The entries of a file with one on each line."""
    return [Row(f"{path}:{number}", row) for number, row in numbered(path)]


def entries_of(path: Path, *, under: str | None = None) -> list[Row]:
    """The entries of a file that holds one list of them, maybe ``under`` a name."""
    held = read_json(path)
    if under is not None:
        held = Row(str(path), held).value(under)
    if not isinstance(held, list):
        raise UserError(f"{path}: holds no list of entries; is it the released file?")
    return [Row(f"{path}:{number}", row) for number, row in enumerate(held, 1)]


def named_of(path: Path) -> dict[str, Row]:
    """The entries of a file that holds them by name."""
    return {name: Row(f"{path}:{name}", row) for name, row in Row(str(path), read_json(path)).values.items()}


def once(rows: Iterable[Row], *names: str) -> Iterator[tuple[str, Row]]:
    """Each row with its key, the values of ``names`` joined. Raises ``UserError`` where two rows share a key: the
    question would count twice.
    """
    places: dict[str, str] = {}
    for row in rows:
        key = "_".join(row.key(name) for name in names)
        if key in places:
            raise UserError(f"{row.place}: {' '.join(names)} {key} stands in {places[key]} too; is a part there twice?")
        places[key] = row.place
        yield key, row


@dataclass(frozen=True)
class Question:
    """A prompt that is made when it is called, and its ``words``, which need no picture."""

    words: tuple[tuple[int, str], ...]
    make: Callable[[], Prompt]

    def __call__(self) -> Prompt:
        return self.make()


def asked(image: Path | Callable[[], Image] | None, *parts: tuple[Role, str]) -> Callable[[], Prompt]:
    """A prompt that is made when it is needed: the picture (its file, or what reads it), then the texts that are not
    empty, a line each.
    """
    texts = [Segment(role, text) for role, text in parts if text]

    def make() -> Prompt:
        if image is None:
            return Prompt(tuple(texts))
        return Prompt((Segment(Role.IMAGE, image=pictures.load(image) if isinstance(image, Path) else image()), *texts))

    return Question(tuple((int(segment.role), segment.text) for segment in texts), make)
