"""What a recipe's keys are made of: names, directions, layers, seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

Direction = Literal["vision", "text"]
Layer = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, StringConstraints(min_length=1)]
FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
FileName = Annotated[str, StringConstraints(pattern=rf"^{FILE_NAME}$")]
