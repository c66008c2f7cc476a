"""Records of a JSONL file or of one big JSON array, read one at a time: constant memory, any record at once.

A file is decoded once, in order, and the byte offset of every record is kept; afterwards a record is one read and one
parse.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory.errors import UserError

CHUNK = 1 << 20
LONGEST = 1 << 26  # characters; a longer "record" is an unclosed bracket or quote
_SEPARATORS = re.compile(r"[ \t\r\n,]*")


def scan(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Byte offset, size in bytes and value of each record of a JSON array or of JSON values that follow each other
    (JSONL).

    Raises ``UserError`` with the line for what is not JSON in UTF-8, not an object, or cut short.
    """
    decode = json.JSONDecoder().raw_decode
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from _scan(path, file, decode)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _scan(path: Path, file: Any, decode: Any) -> Iterator[tuple[int, int, dict[str, Any]]]:
    buffer, at, offset = file.read(CHUNK), 0, 0
    if buffer.startswith("\ufeff"):
        at, offset = 1, 3
    array, closed = None, False
    while True:
        stop = _SEPARATORS.match(buffer, at).end()
        at, offset = stop, offset + stop - at
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
            except json.JSONDecodeError as error:
                more = file.read(CHUNK) if len(buffer) - at < LONGEST else ""
                if not more:
                    raise _refusal(path, offset, f"not valid JSON, or cut short: {error.msg}") from error
                buffer, at = buffer[at:] + more, 0
                continue
            size = len(buffer[at:stop].encode())
            yield offset, size, value
            at, offset = stop, offset + size
    if array and not closed:
        raise _refusal(path, offset, "cut short: its list is not closed by ']'")


def _refusal(path: Path, offset: int, what: str) -> UserError:
    lines = 1
    with path.open("rb") as file:
        while offset > 0 and (piece := file.read(min(CHUNK, offset))):
            lines += piece.count(b"\n")
            offset -= len(piece)
    return UserError(f"{path}:{lines}: {what}")


class RecordReader:
    """Any record of a file by its place. Positioned reads: processes forked from one another may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")

    def read(self, offset: int, size: int) -> dict[str, Any]:
        """The record at a place that ``scan`` gave. Raises ``UserError`` where the file has changed since."""
        try:
            return json.loads(os.pread(self._file.fileno(), size, offset))
        except ValueError as error:
            raise UserError(f"{self.path}: has changed since it was indexed; start again") from error
