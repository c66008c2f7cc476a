"""One thread that all visitors' work runs in, one after the other: steering is hooks on one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Generic, TypeVar

T = TypeVar("T")


class Gone(Exception):
    """Nobody listens any more."""


class _End:
    """What follows the last item of a stream."""


class Worker:
    """Runs jobs in the order in which they come. What a job raises reaches who asked for it, and nobody else."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="play")

    def do(self, job: Callable[[], T]) -> T:
        """What ``job`` returns."""
        return self._pool.submit(job).result()

    def stream(self, job: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
        """What ``job(tell)`` tells, item by item.

        A job holds its steering inside this thread alone, never across an item: where the reader is gone, its next
        ``tell`` raises, and one that has not begun is not run.
        """
        told: SimpleQueue[T | _End] = SimpleQueue()
        gone = Event()

        def tell(item: T) -> None:
            if gone.is_set():
                raise Gone
            told.put(item)

        def run() -> None:
            try:
                if not gone.is_set():
                    job(tell)
            except Gone:
                pass
            finally:
                told.put(_End())

        future = self._pool.submit(run)
        try:
            while not isinstance(item := told.get(), _End):
                yield item
            future.result()
        finally:
            gone.set()

    def close(self) -> None:
        """End once what was asked for is done."""
        self._pool.shutdown()


class Recent(Generic[T]):
    """The values of the ``size`` keys that were asked for last."""

    def __init__(self, size: int) -> None:
        self.size, self._kept = size, dict[object, T]()

    def get(self, key: object, make: Callable[[], T]) -> T:
        """The value of a key, made where it is not kept."""
        value = self._kept.pop(key) if key in self._kept else make()
        self._kept[key] = value
        while len(self._kept) > self.size:
            del self._kept[next(iter(self._kept))]
        return value
