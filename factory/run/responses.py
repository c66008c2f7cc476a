"""Answers that were generated before, shared by all runs under one root: one file per model, steering and way of
generating.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factory import files

FOLDER = ".responses"


class Responses:
    """Answers by prompt digest. ``about`` must hold all that decides an answer beside the prompt: model, dtype,
    steering, length.
    """

    def __init__(self, root: Path, about: dict[str, Any]) -> None:
        self.path = root / FOLDER / f"{files.digest(about)[:24]}.jsonl"
        rows = files.read_log(self.path) if self.path.is_file() else []
        self.known: dict[str, str] = {row["prompt"]: row["text"] for row in rows}

    def get(self, prompt: str) -> str | None:
        return self.known.get(prompt)

    def put(self, prompt: str, text: str) -> None:
        if prompt not in self.known:
            files.make_folder(self.path.parent)
            files.append_jsonl(self.path, {"prompt": prompt, "text": text})
            self.known[prompt] = text
