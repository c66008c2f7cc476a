"""Rows of a data file as they come, never all held: nothing is indexed, and what cannot be used is found when it comes.

``datasets`` keeps a buffer of rows and draws from it. The order follows from the seed and the epoch alone, so that
a training that goes on reads the rows before its place once more, without their pictures, and goes on with the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from factory import files
from factory.corpus.audit import Audit
from factory.corpus.conversation import name_of, parse
from factory.corpus.index import Check, Marks, audit_row
from factory.corpus.records import scan
from factory.corpus.source import Sample
from factory.errors import UserError

HEAD = 200  # rows that are looked at before anything heavy starts
NAMES = 4096  # of the latest rows, for messages


class InTurn:
    """The order of a stream: place p is its p-th row. ``batch`` are the places of an optimiser step."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __getitem__(self, place: int) -> int:
        return place


class Stream:
    """``total`` samples of a file, epoch after epoch, in an order drawn by ``seed`` from a ``buffer`` of rows.

    Its audit is that of the first ``HEAD`` rows. Raises ``UserError`` where more than ``max_skipped`` of them cannot be
    used, and where ``datasets`` is not installed.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        total: int,
        buffer: int,
        seed: int = 0,
        max_skipped: float = 0.0,
        check: Check | None = None,
        tell: Callable[[Audit], None] = lambda _: None,
        mask_history: bool = False,
    ) -> None:
        if not path.is_file():
            raise UserError(f"data file {path}: not found. Give it as tune.data.path")
        self.path, self.folder, self.total, self.mask_history = path, folder, total, mask_history
        self.rows = drawn_rows(path, buffer, seed)
        self.numbers = np.arange(0)
        self.audit = self._looked_at(check)
        tell(self.audit)
        self.audit.allow(max_skipped, path, folder)
        self._next, self._left = 0, self._endless()
        self._names: OrderedDict[int, str] = OrderedDict()

    def _looked_at(self, check: Check | None) -> Audit:
        audit, marks = Audit(), Marks(self.folder)
        for number, (_, _, record) in enumerate(islice(scan(self.path), HEAD)):
            audit_row(record, number, self.folder, marks, audit, check)
        stat = self.path.stat()
        audit.digest = files.digest([stat.st_size, stat.st_mtime_ns, marks.contents()])
        audit.times = marks.times()
        return audit

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Sample:
        """Forward as far as ``index``; a step back begins anew."""
        if index < self._next:
            self._next, self._left = 0, self._endless()
        record = next(islice(self._left, index - self._next, None))
        self._next = index + 1
        self._names[index] = name_of(record, index)
        if len(self._names) > NAMES:
            self._names.popitem(last=False)
        conversation = parse(record, index, self.mask_history)
        return Sample(conversation.id, conversation.prompt(self.folder))

    def _endless(self) -> Iterator[dict[str, Any]]:
        for epoch in count():
            self.rows.set_epoch(epoch)
            rows = 0
            for rows, record in enumerate(self.rows, 1):
                yield record
            if not rows:
                raise UserError(f"{self.path}: holds no row any more")

    def name(self, index: int) -> str:
        return self._names.get(index, f"at place {index}")

    def task(self, index: int) -> str:
        raise UserError("tune.data.streaming: the tasks of a stream's rows are not known before they come")

    def lengths(self, image: int) -> np.ndarray:
        raise UserError("tune.data.streaming: the lengths of a stream's rows are not known before they come")


def drawn_rows(path: Path, buffer: int, seed: int) -> Any:
    """A file's rows as an ``IterableDataset``, drawn from a ``buffer`` of them."""
    try:
        from datasets import IterableDataset
    except ModuleNotFoundError as error:
        raise UserError("tune.data.streaming needs datasets; pip install 'steering-factory[data]'") from error
    rows = IterableDataset.from_generator(_records, gen_kwargs={"path": path})
    return rows.shuffle(seed=seed, buffer_size=buffer) if buffer > 1 else rows


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for _, _, record in scan(path):
        yield record
