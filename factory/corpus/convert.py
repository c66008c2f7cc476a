"""What a converter gives, and the writing of its records as JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory import files
from factory.errors import UserError
from factory.registry import Plugin, plugin_named

# LLaVA-1.5's wording for short answers and for choices (arXiv 2310.03744)
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


class Converter(Plugin):
    """Base of the converters. ``records`` reads a dataset's released files under ``folder``; image paths are relative
    to it.
    """

    def records(self, folder: Path, split: str) -> Iterator[dict[str, Any]]:
        raise TypeError(f"{type(self).__name__} must define records(folder, split)")


def turns(id: str, image: str | None, question: str, answer: str) -> dict[str, Any]:
    """A LLaVA-JSON record of one question, its image first."""
    about = {"id": id} if image is None else {"id": id, "image": image}
    mark = "" if image is None else "<image>\n"
    return about | {"conversations": [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]}


def convert(name: str, folder: Path, split: str, out: Path) -> int:
    """Write the records of a released dataset to ``out`` (JSONL); returns how many. ``name`` is a converter's, or a
    plugin file. Raises ``UserError`` for a missing file.
    """
    cls = plugin_named("converter", name)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in cls(cls.Params()).records(folder, split)]
    if not lines:
        raise UserError(f"{folder}: holds no sample of split '{split}' of {cls.name}")
    files.write_text(out, "".join(lines))
    return len(lines)


def released(path: Path) -> Any:
    """The content of a released JSON file. Raises ``UserError`` that says where it was looked for."""
    if not path.is_file():
        raise UserError(f"{path}: not found; give the folder as the dataset's authors release it")
    return files.read_json(path)
