"""What an optional part of the project needs beside its own dependencies, and the line that installs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def not_installed(what: str, extra: str, modules: Sequence[str]) -> str | None:
    """Why ``what`` cannot be used: which of its ``modules`` are not installed, and how to install the ``extra`` that
    has them; None where all are there.
    """
    absent = [name for name in modules if find_spec(name) is None]
    if not absent:
        return None
    return f"{what} needs {' and '.join(absent)}, the extra '{extra}': {installed_by(extra)}"


def installed_by(extra: str, root: Path = ROOT) -> str:
    """The command that installs an ``extra``: in a checkout, which lies at ``root``, at the versions tested, else of
    the installed package.
    """
    pip = f"{sys.executable} -m pip install"
    if (root / "constraints.txt").is_file() and (root / "pyproject.toml").is_file():
        return f"{pip} -c {root / 'constraints.txt'} -e '{root}[{extra}]'"
    return f"{pip} 'steering-factory[{extra}]'"
