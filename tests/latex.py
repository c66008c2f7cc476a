"""Tables set by LaTeX, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def _is_there() -> bool:
    asked = shutil.which("pdflatex") and shutil.which("kpsewhich")
    return bool(asked and subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).stdout)


needs_latex = pytest.mark.skipif(not _is_there(), reason="needs pdflatex and booktabs")


def set_in_two_columns(table: Path) -> str:
    """What LaTeX says of an article of two columns that takes in ``table``, with the packages that it names."""
    text = table.read_text(encoding="utf-8")
    packages = text.splitlines()[0].removeprefix("% ")
    words = "Some words of a column. " * 40
    article = f"\\documentclass[twocolumn]{{article}}{packages}\\begin{{document}}{words}{text}{words}\\end{{document}}"
    (table.parent / "article.tex").write_text(article, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"]
    done = subprocess.run(command, cwd=table.parent, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout
