"""Records of a JSONL file, of one big JSON array or of a Parquet file, read one at a time: constant memory, any record
at once.

A file is decoded once, in order, and the byte offset of every record is kept; afterwards a record is one read and one
parse.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from factory.corpus import parquet
from factory.errors import UserError

CHUNK = 1 << 20
TICKS = 10_000  # rows between two tellings of how far a counting has come
LONGEST = 1 << 26  # characters; a longer "record" is an unclosed bracket or quote
_SEPARATORS = re.compile(r"[ \t\r\n,]*")
UNPACK, CONVERT = "unpack it and name the file in it", "save its records as JSONL, a line each"
TAR = 257  # where a tar archive says that it is one
KINDS = (
    (b"PK\x03\x04", "a zip archive", UNPACK),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (b"Rar!", "a rar archive", UNPACK),
    (b"ARROW1", "an Arrow file", CONVERT),
    (b"\xff\xff\xff\xff", "an Arrow stream", CONVERT),
    (b"SQLite format 3", "an SQLite database", CONVERT),
    (b"\x89HDF", "an HDF5 file", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    (b"\x80", "a pickle", CONVERT),
    (b"%PDF", "a PDF", CONVERT),
    (b"\x89PNG", "a picture", "name the file of conversations, and the pictures' folder under images"),
    (b"\xff\xd8\xff", "a picture", "name the file of conversations, and the pictures' folder under images"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
)


def scan(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Where each record of a file lies and its value: byte offset and size of those of a JSON array or of JSON values
    that follow each other (JSONL), the row's number and 0 of those of a Parquet file.

    Raises ``UserError`` with the line for what is not JSON in UTF-8, not an object, or cut short; for a file of another
    kind it says which.
    """
    if parquet.is_parquet(path):
        yield from parquet.scan_rows(path)
        return
    _check_kind(path)
    decode = json.JSONDecoder().raw_decode
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from _scan(path, file, decode)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def count_rows(path: Path, tick: Callable[[int], None] = lambda _: None) -> int:
    """The rows of a file, which ``scan`` would give; ``tick`` is told now and then the bytes read so far."""
    if parquet.is_parquet(path):
        return parquet.count_rows_of(path)
    rows = 0
    for rows, (offset, size, _) in enumerate(scan(path), 1):
        if not rows % TICKS:
            tick(offset + size)
    return rows


def _scan(path: Path, file: Any, decode: Any) -> Iterator[tuple[int, int, dict[str, Any]]]:
    buffer, at, offset = file.read(CHUNK), 0, 0
    if buffer.startswith("\ufeff"):
        at, offset = 1, 3
    array, closed = None, False
    while True:
        separators = _SEPARATORS.match(buffer, at)
        assert separators is not None, "no separator is a match too"
        at, offset = separators.end(), offset + separators.end() - at
        if at == len(buffer):
            buffer, at = file.read(CHUNK), 0
            if not buffer:
                break
        elif array is None and buffer[at] == "[":
            array, at, offset = True, at + 1, offset + 1
        elif closed or buffer[at] != "{":
            if closed or not array or buffer[at] != "]":
                raise _refusal(path, offset, "holds something other than a list of {...} records")
            closed, at, offset = True, at + 1, offset + 1
        else:
            array = bool(array)
            try:
                value, stop = decode(buffer, at)
            except (ValueError, RecursionError) as error:
                unfinished = isinstance(error, json.JSONDecodeError) and len(buffer) - at < LONGEST
                more = file.read(CHUNK) if unfinished else ""
                if not more:
                    why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
                    why = error.msg if isinstance(error, json.JSONDecodeError) else why[:120]
                    raise _refusal(path, offset, f"not valid JSON, or cut short: {why}") from error
                buffer, at = buffer[at:] + more, 0
                continue
            size = len(buffer[at:stop].encode())
            yield offset, size, value
            at, offset = stop, offset + size
    if array and not closed:
        raise _refusal(path, offset, "cut short: its list is not closed by ']'")


def _check_kind(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(TAR + 5)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    found = next(((what, do) for magic, what, do in KINDS if head.startswith(magic)), None)
    if head[TAR:] == b"ustar":
        found = ("a tar archive", UNPACK)
    if found is None and b"\0" in head:
        found = ("a binary file", CONVERT)
    if found:
        raise UserError(f"{path}: is {found[0]}, where JSON, JSONL or Parquet is read; {found[1]}")


def _refusal(path: Path, offset: int, what: str) -> UserError:
    lines = 1
    with path.open("rb") as file:
        while offset > 0 and (piece := file.read(min(CHUNK, offset))):
            lines += piece.count(b"\n")
            offset -= len(piece)
    return UserError(f"{path}:{lines}: {what}")


class Reader(Protocol):
    """Any record of a file by the place that ``scan`` gave."""

    def read(self, offset: int, size: int) -> dict[str, Any]: ...


def reader(path: Path) -> Reader:
    return parquet.RowReader(path) if parquet.is_parquet(path) else RecordReader(path)


class RecordReader:
    """Any record of a file by its place. Positioned reads: processes forked from one another may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")

    def read(self, offset: int, size: int) -> dict[str, Any]:
        """The record at a place that ``scan`` gave. Raises ``UserError`` where the file has changed since."""
        try:
            record = json.loads(os.pread(self._file.fileno(), size, offset))
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{self.path}: has changed since it was indexed; start again")
        return record
