"""Rows of data as they come, never all held: nothing is indexed, and what cannot be used is found when it comes.

``datasets`` keeps a buffer of rows and draws from it. The order follows from the seed and the epoch alone, so that
a training that goes on reads the rows before its place once more, without their pictures, and goes on with the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from factory import files
from factory.corpus.audit import Audit
from factory.corpus.conversation import name_of, parse
from factory.corpus.index import Check, Marks, audit_row
from factory.corpus.kept import keep, kept
from factory.corpus.mixed import drawn_of
from factory.corpus.records import count_rows, scan
from factory.corpus.source import Sample
from factory.errors import UserError
from factory.extras import installed_by

HEAD = 200  # rows that are looked at before anything heavy starts
NAMES = 4096  # of the latest rows, for messages

Row = dict[str, Any]


class InTurn:
    """The order of a stream: place p is its p-th row. ``batch`` are the places of an optimiser step."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __getitem__(self, place: int) -> int:
        return place


class Flow(Protocol):
    """One thing that rows flow from: ``title`` names it, ``folder`` has its pictures, ``rows`` come in an epoch (None:
    not known before they have come), and ``state`` (JSON-able) tells it from what it was or will be.
    """

    title: Path | str
    folder: Path
    rows: int | None
    state: Any

    def head(self) -> Iterator[Row]:
        """Its rows in the order they lie in."""

    def drawn(self, epoch: int) -> Iterator[tuple[int | None, Row]]:
        """The rows of an epoch as they are drawn, each with its number where that is known."""

    def opened(self, record: Row) -> Row:
        """A row with the pictures that are fetched for itself."""


class FileFlow:
    """The rows of a file, drawn by ``seed`` from a ``buffer`` of them. Of ``weight`` 2.5 an epoch shows each row twice
    and a half of them, which the seed draws, once more; any but 1 takes their number ``rows``.
    """

    def __init__(
        self, path: Path, folder: Path, buffer: int, seed: int, weight: float = 1.0, rows: int | None = None
    ) -> None:
        if not path.is_file():
            raise UserError(f"data file {path}: not found. Give it as tune.data.path")
        self.title: Path | str = path
        self.path, self.folder = path, folder
        whole, more = (int(weight), drawn_of(rows, weight, seed)) if rows is not None else (1, np.arange(0))
        self.rows: int | None = None if rows is None else whole * rows + len(more)
        stat = path.stat()
        self.state: Any = [stat.st_size, stat.st_mtime_ns]
        chosen = np.zeros(rows or 0, bool)
        chosen[more] = True
        made = iterable().from_generator(_records, gen_kwargs={"path": path, "whole": whole, "chosen": chosen})
        self._drawn = made.shuffle(seed=seed, buffer_size=buffer) if buffer > 1 else made

    def head(self) -> Iterator[Row]:
        return (record for _, _, record in scan(self.path))

    def drawn(self, epoch: int) -> Iterator[tuple[int | None, Row]]:
        self._drawn.set_epoch(epoch)
        for row in self._drawn:
            yield row["number"], row["record"]

    def opened(self, record: Row) -> Row:
        return record


class Stream:
    """``total`` samples of ``flows``, epoch after epoch. Of several, which one gives the next row is drawn by ``seed``
    in proportion to the rows that each has left in the epoch.

    Its audit is that of the first ``HEAD`` rows of each. Raises ``UserError`` where more than ``max_skipped`` of them
    cannot be used.
    """

    def __init__(
        self,
        flows: Sequence[Flow],
        total: int,
        seed: int = 0,
        max_skipped: float = 0.0,
        check: Check | None = None,
        tell: Callable[[Audit, Path | str], None] = lambda audit, title: None,
        mask_history: bool = False,
    ) -> None:
        self.flows, self.total, self.seed, self.mask_history = flows, total, seed, mask_history
        self.numbers = np.arange(0)
        audits = []
        for flow in flows:
            audits.append(_looked_at(flow, check))
            tell(audits[-1], flow.title)
            audits[-1].allow(max_skipped, flow.title, flow.folder)
        self.audit = audits[0] if len(audits) == 1 else Audit.together(audits)
        if len(flows) > 1:
            self.audit.digest = files.digest([self.audit.digest, [flow.rows for flow in flows]])
        self._next, self._left = 0, self._endless()
        self._names: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Sample:
        """Forward as far as ``index``; a step back begins anew."""
        if index < self._next:
            self._next, self._left = 0, self._endless()
        flow, number, record = next(islice(self._left, index - self._next, None))
        self._next = index + 1
        name = name_of(record, index if number is None else number)
        self._names[index] = name = name if len(self.flows) == 1 else f"{name} of {flow.title}"
        if len(self._names) > NAMES:
            self._names.popitem(last=False)
        return Sample(name, parse(flow.opened(record), index, self.mask_history).prompt(flow.folder))

    def _endless(self) -> Iterator[tuple[Flow, int | None, Row]]:
        for epoch in count():
            yield from self._epoch_of_one(epoch) if len(self.flows) == 1 else self._epoch_of_all(epoch)

    def _epoch_of_one(self, epoch: int) -> Iterator[tuple[Flow, int | None, Row]]:
        [flow], found = self.flows, False
        for number, record in flow.drawn(epoch):
            found = True
            yield flow, number, record
        if not found:
            raise UserError(f"{flow.title}: holds no row any more")

    def _epoch_of_all(self, epoch: int) -> Iterator[tuple[Flow, int | None, Row]]:
        left = np.array([flow.rows for flow in self.flows])
        rng, coming = np.random.default_rng((self.seed, epoch)), [flow.drawn(epoch) for flow in self.flows]
        while total := left.sum():
            at = int(np.searchsorted(left.cumsum(), rng.integers(total), side="right"))
            left[at] -= 1
            row = next(coming[at], None)
            if row is None:
                raise UserError(f"{self.flows[at].title}: has changed since its rows were counted; start again")
            yield self.flows[at], *row

    def name(self, index: int) -> str:
        return self._names.get(index, f"at place {index}")

    def task(self, index: int) -> str:
        raise UserError("tune.data.streaming: the tasks of a stream's rows are not known before they come")

    def lengths(self, image: int) -> np.ndarray:
        raise UserError("tune.data.streaming: the lengths of a stream's rows are not known before they come")


def _looked_at(flow: Flow, check: Check | None) -> Audit:
    audit, marks = Audit(), Marks(flow.folder)
    for number, record in enumerate(islice(flow.head(), HEAD)):
        audit_row(flow.opened(record), number, flow.folder, marks, audit, check)
    audit.digest = files.digest([*flow.state, marks.contents()])
    audit.times = marks.times()
    return audit


def iterable() -> Any:
    """The class of streams of ``datasets``. Raises ``UserError`` where that is not installed."""
    try:
        from datasets import IterableDataset
    except ModuleNotFoundError as error:
        raise UserError(f"tune.data.streaming needs datasets, the extra 'data': {installed_by('data')}") from error
    return IterableDataset


def rows_of(path: Path, cache: Path, tick: Callable[[int], None] = lambda _: None) -> int:
    """The rows of a file, from ``cache`` where it was counted before; ``tick`` is told the bytes read so far."""
    stat = path.stat()
    about = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
    place = cache / f"rows-{files.digest(about)[:16]}.json"
    if (known := (kept(place) or {}).get("rows")) is None:
        known = count_rows(path, tick)
        keep(place, {"rows": known})
    return int(known)


def _records(path: Path, whole: int, chosen: np.ndarray) -> Iterator[dict[str, Any]]:
    """Every row ``whole`` times, those that are ``chosen`` [rows] once more, each with its number."""
    for _ in range(whole):
        for number, (_, _, record) in enumerate(scan(path)):
            yield {"number": number, "record": record}
    for number, (_, _, record) in enumerate(scan(path) if chosen.any() else ()):
        if number < len(chosen) and chosen[number]:
            yield {"number": number, "record": record}
