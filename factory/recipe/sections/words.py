"""What a recipe's keys are made of: names, directions, layers, seeds."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from factory.recipe.paths import RecipePath

Direction = Annotated[str, StringConstraints(min_length=1)]
Layer = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, StringConstraints(min_length=1)]
Word = Annotated[str, StringConstraints(pattern=r"^\S+$")]
FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
PathText = Annotated[RecipePath, BeforeValidator(lambda path: str(path) if isinstance(path, PurePath) else path)]
FileName = Annotated[str, StringConstraints(pattern=rf"^{FILE_NAME}$", max_length=150)]
