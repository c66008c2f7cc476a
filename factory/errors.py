"""The one exception for a person's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

SHOWN = 60


DEBUG = "STEERING_FACTORY_DEBUG"  # set by --debug, for this process and all that it starts


class UserError(Exception):
    """A mistake in a recipe, a command or a file, told in one clear line: what, where, what to do.

    The command line prints the message without a traceback and exits with code 2. ``placed``: whether the message says
    already where the recipe has what is wrong.
    """

    placed = False


def quoted(value: Any, most: int = SHOWN) -> str:
    """A value from a file as a message shows it: in quotes, on one line, cut after ``most`` characters."""
    text = value if isinstance(value, str) else f"{value}"
    return repr(text if len(text) <= most else text[:most] + "…")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean a or b?"`` for the names in ``known`` near ``word``; empty where none is near."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    near += [name for name in names if len(word) > 2 and name.startswith(word) and name not in near][: 3 - len(near)]
    return f" Did you mean {' or '.join(near)}?" if near else ""
