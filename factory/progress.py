"""Progress on screen: a bar a stage on a terminal, single lines in a log.

Use: `with progress.stage("fit", total=40) as bar: bar.advance(8)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from factory import terminal
from factory.terminal import Console

LINE_SECONDS = 10.0
LINE_SHARE = 0.1


class Bar(Protocol):
    """What a stage reports to."""

    def advance(self, n: int = 1) -> None:
        """Count `n` more units of work as done."""


class Gathering(Protocol):
    """A stage whose values are computed in shares and kept, as a run folder's are."""

    name: str

    def missing(self, keys: Any) -> Any:
        """The keys whose values are not kept yet."""

    def gather(self, work: Any, progressed: Callable[[int], None] | None = None) -> list[Any]:
        """The values of all keys of ``work``; ``progressed`` is told how many were computed."""


_watcher: ContextVar[Callable[[str, int], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Callable[[str, int], None]) -> Iterator[None]:
    """Within the block ``watcher(stage, done)`` is called after each advance of a stage; what it raises ends the run
    there.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def stage(name: str, total: int, done: int = 0, console: Console | None = None) -> Iterator[Bar]:
    """Show a stage of `total` units of which `done` were done by an earlier start (left out of the time estimate).

    Without a terminal it prints a line every 10 % or every 10 s (more rarely as hours pass), whichever comes first.
    """
    console = console or terminal.console()
    shown = _live if console.is_interactive and console.file.isatty() else _plain
    watcher = _watcher.get()
    with shown(name, total, done, console) as bar:
        yield bar if watcher is None else _Watched(bar, partial(watcher, name), done)


def gather(stage_: Gathering, work: Mapping[str, Callable[[], Any]]) -> list[Any]:
    """``stage_.gather(work)`` with a bar that counts the work of all ranks; a dim line where an earlier start did
    it.
    """
    missing, shown = len(stage_.missing(work)), 0
    if not missing:
        skipped(stage_.name)
        return stage_.gather(work)

    def show(computed: int) -> None:
        nonlocal shown
        bar.advance(computed - shown)
        shown = computed

    with stage(stage_.name, len(work), len(work) - missing) as bar:
        return stage_.gather(work, show)


def skipped(name: str, console: Console | None = None) -> None:
    """Say in one dim line that a stage was done by an earlier start."""
    _say(console or terminal.console(), f"{name}: done before", style="dim")


@contextmanager
def _live(name: str, total: int, done: int, console: Console) -> Iterator[Bar]:
    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        yield _LiveBar(display, display.add_task(name, total=total, completed=done))


@contextmanager
def _plain(name: str, total: int, done: int, console: Console) -> Iterator[Bar]:
    bar = _PlainBar(name, total, done, console)
    try:
        yield bar
    except BaseException:
        bar.say("stopped")
        raise
    bar.say("done")


class _Watched:
    def __init__(self, bar: Bar, told: Callable[[int], None], done: int):
        self.bar, self.told, self.done = bar, told, done

    def advance(self, n: int = 1) -> None:
        self.bar.advance(n)
        self.done += n
        self.told(self.done)


class _LiveBar:
    def __init__(self, display: Progress, task: TaskID):
        self.display, self.task = display, task

    def advance(self, n: int = 1) -> None:
        self.display.advance(self.task, n)


class _PlainBar:
    def __init__(self, name: str, total: int, done: int, console: Console):
        self.name, self.total, self.console = name, total, console
        self.first = self.count = done
        self.started = time.monotonic()
        self.said_count, self.said_at = done, 0.0
        _say(console, f"{name}: {self._share()}")

    def advance(self, n: int = 1) -> None:
        self.count += n
        if self.count < self.total and self._due():
            self.say(f"{_clock(self._left())} left")

    def say(self, state: str) -> None:
        """Print where the stage stands."""
        self.said_count, self.said_at = self.count, self._elapsed()
        _say(self.console, f"{self.name}: {self._share()}, {_clock(self.said_at)}, {state}")

    def _due(self) -> bool:
        # The pause grows to a twentieth of the time gone, so that a day's run prints hundreds of lines, not thousands.
        pause = max(LINE_SECONDS, self._elapsed() / 20)
        return self.count - self.said_count >= LINE_SHARE * self.total or self._elapsed() - self.said_at >= pause

    def _elapsed(self) -> float:
        return time.monotonic() - self.started

    def _left(self) -> float:
        return self._elapsed() * (self.total - self.count) / max(self.count - self.first, 1)

    def _share(self) -> str:
        return f"{self.count}/{self.total} ({100 * self.count // max(self.total, 1)} %)"


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
