"""The templates of the report's pages. Everything that comes from the inputs is HTML-escaped by the engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, /, **values: Any) -> str:
    """A template of ``eval_suite/report/templates`` as text."""
    environment = Environment(
        loader=PackageLoader("eval_suite.report", "templates"),
        autoescape=True,  # for every template: method names, notes and recipes are free text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["worded"] = worded
    return environment.get_template(template).render(**values)


_NUMBER = re.compile(r"[-−+<>]?\s*[\d.]|[—–-]?$|nan\b|-?inf\b")


def worded(lines: Sequence[Sequence[str]]) -> list[int]:
    """The columns of a table, from 1, that hold words: those are flush left, numbers flush right."""
    columns = enumerate(zip(*lines, strict=True), 1)
    return [i for i, cells in columns if not all(_NUMBER.match(cell) for cell in cells)]
