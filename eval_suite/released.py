"""Reading benchmark files as their authors release them; what is missing or malformed is told in one line with its
path.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError


def file(root: str | Path, *names: str) -> Path:
    """The first of ``names`` that is a file under ``root``. Raises ``UserError`` that names them all."""
    folder = Path(root).expanduser()
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: {' or '.join(names)} not found; give the folder of the released files: root=FOLDER")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}:{number}: not a line of JSON: {error}") from error
    return rows


def field_of(path: Path, row: dict[str, Any], *names: str) -> list[Any]:
    """The values of ``names`` in ``row``. Raises ``UserError`` for one that the file lacks."""
    lacking = [name for name in names if name not in row]
    if lacking:
        raise UserError(
            f"{path}: an entry has no '{lacking[0]}' (it has: {', '.join(map(str, row))[:120]}); is it the released"
            " file?"
        )
    return [row[name] for name in names]


def asked(image: Path | None, *parts: tuple[Role, str]) -> Callable[[], Prompt]:
    """A prompt that is made when it is needed: the picture, then the texts that are not empty, a line each."""
    texts = [Segment(role, text) for role, text in parts if text]

    def make() -> Prompt:
        shown = [Segment(Role.IMAGE, image=pictures.read(image))] if image else []
        return Prompt((*shown, *texts))

    return make
