"""What a plugin's docstring says of it, read from its file without importing it."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1024)
def read_summary(path: Path, kind: str, name: str, changed: int) -> str | None:
    """First docstring paragraph of the class that ``path``, last ``changed`` then, registers as a plugin, else of the
    module; None if it registers none.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(_registers(each, kind, name) for each in node.decorator_list):
            return first_paragraph(ast.get_docstring(node) or ast.get_docstring(tree))
    return None


def _registers(decorator: ast.expr, kind: str, name: str) -> bool:
    return isinstance(decorator, ast.Call) and [getattr(each, "value", None) for each in decorator.args] == [kind, name]


def first_paragraph(docstring: str | None) -> str:
    """A docstring's first paragraph in one line."""
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())
