"""Where the time of a run goes, part by part, for whoever holds a stopwatch; without one nothing is timed.

What a run does is marked where it is done: ``with part("fit", label): ...``, in a ``chunk`` of a stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Part = tuple[str, str]
"""What is done, and by which method or diagnostic; or a stage and the key of its chunk."""


class Stopwatch:
    """``seconds`` by chunk and part in it, less those of parts in that one; what failed has none. A chunk is itself the
    part of all that no other part is around."""

    def __init__(self, clock: Callable[[], float], settle: Callable[[], object]) -> None:
        """``settle`` waits for what a device still has to do."""
        self.clock, self.settle = clock, settle
        self.seconds: defaultdict[tuple[Part, Part], float] = defaultdict(float)
        self.inside: list[tuple[Part, Part]] = []
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block everything that is marked is timed."""
        token = _held.set(self)
        try:
            yield
        finally:
            _held.reset(token)

    @contextmanager
    def within(self, chunk: Part, part: Part) -> Iterator[None]:
        self._turn()
        self.inside.append((chunk, part))
        try:
            yield
            self._turn()
        finally:
            self.inside.pop()

    def _turn(self) -> None:
        self.settle()
        now = self.clock()
        if self.inside:
            self.seconds[self.inside[-1]] += now - self._since
        self._since = now


_held: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


def chunk(stage: str, key: str) -> AbstractContextManager[None]:
    """The block computes a chunk of a stage."""
    watch = _held.get()
    return nullcontext() if watch is None else watch.within((stage, key), (stage, key))


def part(what: str, label: str | None = None) -> AbstractContextManager[None]:
    """The block is a part of the work in a chunk; without a ``label`` it has that of the part that it lies in."""
    watch = _held.get()
    if watch is None or not watch.inside:
        return nullcontext()
    around, (_, own) = watch.inside[-1]
    return watch.within(around, (what, own if label is None else label))


def further(done: object) -> AbstractContextManager[None]:
    """The block is the ``further`` part of the work on some prompts where something is ``done`` already: the first
    strength alone runs what all strengths share."""
    return part("further") if done else nullcontext()
