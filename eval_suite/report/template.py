"""The templates of the report's pages. Everything that comes from the inputs is HTML-escaped by the engine."""

from __future__ import annotations

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
    return environment.get_template(template).render(**values)
