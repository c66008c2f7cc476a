"""Answers that were generated before, shared by all runs under one root: one file per model, steering and way of
generating.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from factory import files

FOLDER = ".responses"


class Responses:
    """Answers by prompt digest. ``about`` must hold all that decides an answer beside the prompt: model, dtype,
    steering, length.

    Each entry carries a checksum; one that does not match it is never used. ``damaged`` counts those that nobody has
    ``struck`` yet.
    """

    def __init__(self, root: Path, about: dict[str, Any]) -> None:
        self.path = root / FOLDER / f"{files.digest(about)[:24]}.jsonl"
        self.known: dict[str, str] = {}
        damaged, struck = [], set()
        for line in self._lines():
            row = _row(line)
            if _is_whole(row):
                self.known[row["prompt"]] = row["text"]
            elif isinstance(row.get("struck"), str):
                struck.add(row["struck"])
            else:
                damaged.append(files.digest_bytes(line))
        self._damaged = [name for name in dict.fromkeys(damaged) if name not in struck]

    def _lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        with files.explained(self.path, "read"):
            return [line for line in files.plain_bytes(self.path).split(b"\n") if line]

    @property
    def damaged(self) -> int:
        return len(self._damaged)

    def strike(self) -> None:
        """Note which entries are damaged, so that they are told once."""
        for name in self._damaged:
            files.append_jsonl(self.path, {"struck": name})
        self._damaged = []

    def get(self, prompt: str) -> str | None:
        return self.known.get(prompt)

    def put(self, prompt: str, text: str) -> None:
        if prompt not in self.known:
            files.make_folder(self.path.parent)
            files.append_jsonl(self.path, {"prompt": prompt, "text": text, "check": _check(prompt, text)})
            self.known[prompt] = text


class Unkept:
    """Answers by prompt digest of a model that will have changed when it is asked again."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def get(self, prompt: str) -> str | None:
        return self.known.get(prompt)

    def put(self, prompt: str, text: str) -> None:
        self.known[prompt] = text


def _check(prompt: str, text: str) -> str:
    return files.digest([prompt, text])[:16]


def _row(line: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        return row if isinstance(row, dict) else {}
    return {}


def _is_whole(row: dict[str, Any]) -> bool:
    prompt, text = row.get("prompt"), row.get("text")
    return isinstance(prompt, str) and isinstance(text, str) and row.get("check") == _check(prompt, text)
