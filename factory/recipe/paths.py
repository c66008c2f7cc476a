"""Paths that a recipe names: taken from the recipe's folder, then from where one stands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from factory.errors import UserError, quoted

FOLDER = "folder"  # of the recipe, in the context that its keys are validated in


class RecipePath(str):
    """A path among a plugin's parameters. It reads as the place where something was found, so that a resolved recipe
    finds it again from where it was run. Where nothing is, it stays as written; ``tried`` are the places looked at.
    """

    tried: tuple[Path, ...]

    def __new__(cls, written: str, folder: Path | None = None) -> Self:
        given = Path(os.path.expanduser(written))
        tried = tuple(dict.fromkeys(base / given for base in (folder or Path(), Path())))
        found = next((path for path in tried if os.path.exists(path)), None)
        path = super().__new__(cls, written if found is None or given.is_absolute() else _from_here(found))
        path.tried = tried
        return path

    @property
    def path(self) -> Path:
        return Path(os.path.expanduser(self))

    def file(self, key: str, advice: str = "") -> Path:
        """The file; ``key`` is the plugin's, for the message, and ``advice`` ends it. Raises ``UserError`` that says
        which were tried.
        """
        if os.path.isfile(self.path):
            return self.path
        raise UserError(f"{key} {quoted(self)}: {self._instead('file')}{advice and f'. {advice}'}")

    def directory(self, key: str, advice: str = "") -> Path:
        """As ``file``, for a folder."""
        if os.path.isdir(self.path):
            return self.path
        raise UserError(f"{key} {quoted(self)}: {self._instead('folder')}{advice and f'. {advice}'}")

    def _instead(self, kind: str) -> str:
        if os.path.exists(self.path):
            return f"is no {kind}"
        return f"no such {kind}; looked for {' and '.join(map(os.path.abspath, self.tried))}"

    @classmethod
    def _read(cls, written: str, info: ValidationInfo) -> RecipePath:
        return cls(written, (info.context or {}).get(FOLDER))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(
            cls._read,
            core_schema.str_schema(min_length=1),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )


def _from_here(path: Path) -> str:
    """The path from the current folder where it lies in it, so that a recipe says the same however it is named."""
    whole = Path(os.path.abspath(path))
    return str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole)
