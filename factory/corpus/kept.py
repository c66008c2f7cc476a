"""What reading a file or a folder through has found, kept in a cache as a record with a digest of itself: a damaged one
is as good as none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from factory import files
from factory.errors import UserError

SUM = "sum"  # the key of a record's digest


def keep(place: Path, record: Mapping[str, Any]) -> None:
    """Write a record as ``place``. It is written last, after what it vouches for."""
    clear(place)
    files.write_json(place, {**record, SUM: files.digest(record)})


def kept(place: Path) -> dict[str, Any] | None:
    """The record that was kept as ``place``; None where none is there, or not as it was written."""
    with suppress(UserError, OSError, ValueError, TypeError, KeyError, AttributeError):
        record: dict[str, Any] = files.read_json(place)
        if record.pop(SUM) == files.digest(record):
            return record
    return None


def clear(place: Path) -> None:
    """Move a folder out of the way that stands where a file of the cache is to be."""
    if place.is_dir():
        with files.explained(place, "move it away"):
            place.rename(place.with_name(f"{place.name}.{os.getpid()}.aside"))
