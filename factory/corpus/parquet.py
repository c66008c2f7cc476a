"""Records of a Parquet file: its rows, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.errors import UserError
from factory.extras import installed_by

MAGIC = b"PAR1"
ROWS = 64  # read at once; pictures in the rows make them large


def is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def scan_rows(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Number, 0 and value of each row. Raises ``UserError`` for a damaged file, and where pyarrow is not installed."""
    number = 0
    with _told(path):
        for batch in _opened(path).iter_batches(ROWS):
            for record in batch.to_pylist():
                yield number, 0, record
                number += 1


def count_rows_of(path: Path) -> int:
    """How many rows a file says it has. Raises ``UserError`` as ``scan_rows`` does."""
    with _told(path):
        return int(_opened(path).metadata.num_rows)


class RowReader:
    """Any row of a file. The row group of the last one stays in memory; each process opens the file for itself."""

    def __init__(self, path: Path) -> None:
        self.path, self._process, self._group = path, 0, -1

    def read(self, offset: int, size: int) -> dict[str, Any]:
        """The row of a number that ``scan_rows`` gave. Raises ``UserError`` where the file has changed since."""
        with _told(self.path):
            if self._process != os.getpid():
                self._process, self._group, self._file = os.getpid(), -1, _opened(self.path)
                meta = self._file.metadata
                sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
                self._starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
            if offset >= self._starts[-1]:
                raise UserError(f"{self.path}: has changed since it was indexed; start again")
            group = next(i for i, end in enumerate(self._starts[1:]) if offset < end)
            if group != self._group:
                self._group, self._rows = group, self._file.read_row_group(group)
            return self._rows.slice(offset - self._starts[group], 1).to_pylist()[0]


def _opened(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow, the extra 'benchmarks': {installed_by('benchmarks')}"
        ) from error
    return ParquetFile(path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own are kinds of these
        why = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a whole Parquet file ({why})") from error
