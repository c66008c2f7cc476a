"""Faults of plugins: whose, where and what, in one line. A plugin is a person's code, and the first thing that person
needs is its name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import TracebackType

from factory.errors import DEBUG, UserError
from factory.registry import Plugin

KINDS = ("steering", "diagnostic", "benchmark", "tuner", "converter", "lessons")
CONCERNS = "_steering_factory_concerns"


@contextmanager
def concerning(what: str) -> Iterator[None]:
    """Let a fault inside the block say that it concerns ``what``."""
    try:
        yield
    except UserError:
        raise
    except Exception as fault:
        if not hasattr(fault, CONCERNS):
            setattr(fault, CONCERNS, what)
        raise


def told_of(fault: BaseException) -> str | None:
    """One line on a fault that came out of a plugin; None for any other, and where the traceback is asked for."""
    if os.environ.get(DEBUG) or (found := _frame(fault.__traceback__)) is None:
        return None
    plugin, method, place = found
    what = getattr(fault, CONCERNS, None) or f"{plugin.kind} '{plugin.name}'"
    why = " ".join(str(fault).split())[:300]
    return f"{what}: {method} raised {type(fault).__name__}{why and f': {why}'} ({place}); --debug shows the traceback"


def _frame(traceback: TracebackType | None) -> tuple[Plugin, str, str] | None:
    """The first plugin that was called, its method (one of its own file, where there is any), and the last line of that
    file that was run.
    """
    frames = list(walk_tb(traceback))
    called = [i for i, (frame, _) in enumerate(frames) if _is_plugin(frame.f_locals.get("self"))]
    if not called:
        return None
    plugin = frames[called[0]][0].f_locals["self"]
    own = getattr(sys.modules.get(type(plugin).__module__), "__file__", None)
    inside = [(f, n) for f, n in frames[called[0] :] if f.f_code.co_filename == own] or [frames[called[0]]]
    last, line = inside[-1]
    return plugin, inside[0][0].f_code.co_name, f"{os.path.basename(last.f_code.co_filename)}:{line}"


def _is_plugin(owner: object) -> bool:
    return getattr(type(owner), "kind", None) in KINDS and isinstance(getattr(type(owner), "name", None), str)
