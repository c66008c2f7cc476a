"""The index of a data file: where each of its rows lies and whether it can be used, built by reading every row and
every picture's header once, and kept while the file and its pictures stay the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from factory import code, files
from factory.corpus.audit import MISSING, Audit
from factory.corpus.conversation import IN_ROW, Conversation, Unusable, name_of, parse
from factory.corpus.kept import clear, keep, kept
from factory.corpus.records import scan
from factory.data import pictures

BLOCK = 50_000
ENTRY = np.dtype([("offset", "<u8"), ("size", "<u4"), ("characters", "<u4"), ("images", "<u2"), ("usable", "?")])
Size = tuple[int, int]


class Check(Protocol):
    """What a model refuses of a conversation; ``identity`` (JSON-able) tells it from other models' checks."""

    identity: Any

    def __call__(self, conversation: Conversation, sizes: Sequence[Size]) -> None:
        """Raises ``Unusable``; ``sizes`` are width and height of each picture."""


class Marks:
    """The pictures that a file names, in order, and two digests of them: ``times``, of names, sizes and times, which
    are looked at on every start, and ``contents``, of names and bytes, which no copying or touching changes.
    """

    def __init__(self, folder: Path) -> None:
        self.at = str(folder)
        self._times, self._contents = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        self._last: str | None = None
        self._out = io.BytesIO()
        self._names = gzip.GzipFile(fileobj=self._out, mode="w", compresslevel=1, mtime=0)

    def add(self, name: str, read: bool = True) -> bool:
        """Take a picture's state into the digests, into ``contents`` where it is to be ``read``; whether it is
        there.
        """
        path = os.path.join(self.at, name)
        try:
            stat = os.stat(path)
            state = f"{stat.st_size}:{stat.st_mtime_ns}"
        except (OSError, ValueError):
            state = "absent"
        if name != self._last:
            line = json.dumps(name).encode()
            self._times.update(line + state.encode())
            self._names.write(line + b"\n")
            if read:
                self._contents.update(line + _told_by(Path(path)).encode())
        self._last = name
        return state != "absent"

    def times(self) -> str:
        return self._times.hexdigest()

    def contents(self) -> str:
        return self._contents.hexdigest()

    def names(self) -> bytes:
        """The names, to be told again by ``of``."""
        self._names.close()
        return self._out.getvalue()

    @classmethod
    def of(cls, names: Path, folder: Path) -> Marks:
        """The same pictures as they are now, unread."""
        marks = cls(folder)
        with gzip.open(names, "rb") as lines:
            for line in lines:
                marks.add(json.loads(line), read=False)
        return marks


def _told_by(path: Path) -> str:
    try:
        return pictures.stamp(path)
    except pictures.Unreadable:
        return "unread"


def indexed(
    path: Path,
    folder: Path,
    cache: Path,
    check: Check | None = None,
    decode: bool = False,
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray, Audit]:
    """The index [n] of a file and its audit, from ``cache`` where they are of this very file and these pictures."""
    stat = path.stat()
    about = {
        "path": str(path.resolve()),
        "size": stat.st_size,
        "mtime": stat.st_mtime_ns,
        "folder": str(folder.resolve()),
        "code": code.of(READER),
        "check": check and check.identity,
        "decode": decode,
        "pictures": pictures.PROTOCOL,
    }
    stem = cache / f"index-{files.digest(about)[:16]}"
    table, names, report = (stem.with_suffix(suffix) for suffix in (".npy", ".pictures.gz", ".json"))
    with suppress(OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
        record = kept(report) or {}
        whole = record["files"] == [_digest(table), _digest(names)]
        if whole and Marks.of(names, folder).times() == record["pictures"]:
            index = np.load(table, mmap_mode="r")
            if index.dtype == ENTRY and index.shape == (record["audit"]["samples"],):
                return index, Audit.of(record["audit"])
    index, audit, marks = build_index(path, folder, check, decode, tick)
    for place in (table, names):
        clear(place)
    files.write_npy(table, index)
    files.write_bytes(names, marks.names())
    found = {"files": [_digest(table), _digest(names)], "pictures": marks.times(), "audit": audit.record()}
    keep(report, found)
    return index, audit


def build_index(
    path: Path,
    folder: Path,
    check: Check | None = None,
    decode: bool = False,
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray, Audit, Marks]:
    """Read a file through once: place, length and soundness of each record [n]. ``decode``: every picture in full, not
    its header alone. ``tick`` is told the bytes read so far.
    """
    entries: list[tuple[int, int, int, int, bool]] = []
    blocks, audit, marks = [], Audit(), Marks(folder)
    for number, (offset, size, record) in enumerate(scan(path)):
        characters, count, usable = audit_row(record, number, folder, marks, audit, check, decode)
        entries.append((offset, size, characters, min(count, 0xFFFF), usable))
        if len(entries) == BLOCK:
            blocks.append(np.array(entries, ENTRY))
            entries = []
            tick(offset + size)
    index = np.concatenate([*blocks, np.array(entries, ENTRY)])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    audit.digest = files.digest([digest, marks.contents(), pictures.PROTOCOL])
    audit.times = marks.times()
    return index, audit, marks


def audit_row(
    record: dict[str, Any],
    number: int,
    folder: Path,
    marks: Marks,
    audit: Audit,
    check: Check | None = None,
    decode: bool = False,
) -> tuple[int, int, bool]:
    """Take a record into ``audit``, its pictures into ``marks``; its characters, how many pictures it has, and whether
    it can be used.
    """
    characters = count = 0
    fault = None
    try:
        conversation = parse(record, number)
        characters, count = conversation.characters, len(conversation.images)
        sizes = _sizes(conversation, folder, marks, audit, decode)
        if check is not None:
            check(conversation, sizes)
        audit.see(sizes)
    except Unusable as error:
        fault = error
    audit.add(name_of(record, number), characters, count, fault)
    return characters, count, fault is None


READER = build_index  # an index is that of its code


def _sizes(conversation: Conversation, folder: Path, marks: Marks, audit: Audit, decode: bool) -> list[Size]:
    """Width and height of each picture. Raises ``Unusable`` where one is missing or cannot be read."""
    lost = [name for name in conversation.images if isinstance(name, str) and not marks.add(name)]
    audit.missing += len(lost)
    if lost:
        raise Unusable(f"its image {pictures.short_name(lost[0])} is missing", MISSING)
    try:
        return [_size(folder, picture, decode) for picture in conversation.images]
    except pictures.Unreadable as error:
        raise Unusable(f"its image cannot be read: {error}", "image cannot be read") from error


def _size(folder: Path, picture: str | bytes, decode: bool) -> Size:
    if isinstance(picture, bytes):
        return pictures.decode(picture, IN_ROW).size if decode else pictures.size_of(picture, IN_ROW)
    return pictures.load(folder / picture).size if decode else pictures.size(folder / picture)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
