"""A benchmark by its name and keys, as a command takes it that needs no recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence

from factory.errors import UserError
from factory.recipe import loads
from factory.recipe.nodes import Node
from factory.registry import lookup


def benchmark_of(name: str, keys: Sequence[str]) -> Node:
    """``keys`` are KEY=VALUE. Raises ``UserError`` where there is no such benchmark, or it has to be told more."""
    lookup("benchmark", name)
    text = f"name: show\nmodel: {{zoo: tiny}}\nbenchmarks: [{{type: {name}}}]\n"
    try:
        return loads(text, "show", [f"benchmarks.0.{each}" for each in keys]).benchmarks[0]
    except UserError as error:  # without the places of a recipe that nobody has written
        told = re.sub(r"\bshow:\d+:\d+ ", "", str(error)).replace("benchmarks.0.", "")
        raise UserError(told.replace("benchmarks.0", name)) from error
