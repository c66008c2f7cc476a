"""Reading data sets that are released as Parquet files: texts at once, each picture when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from eval_suite.released import RELEASED, Row
from factory.data import pictures
from factory.errors import UserError
from factory.extras import installed_by
from factory.recipe.paths import RecipePath

PART = re.compile(r"(\w+-)(\d{5})-of-(\d{5})((?:-[0-9a-f]+)?)\.parquet")  # some of the hub's end with a hash
PLACES = ("", "data/")  # below the folder of a data set


def parts(root: RecipePath, split: str, source: str) -> list[Path]:
    """The files of a split, SPLIT-*.parquet in a data set's folder or its data/. Raises ``UserError`` where there is
    none, which says where they are had (``source``), or where one of several parts is missing.
    """
    had = f"They are {source}"
    folder = root.directory("root", f"{RELEASED}. {had}")
    for place in PLACES:
        if found := sorted(folder.glob(f"{place}{split}-*.parquet")):
            return whole(found)
    raise UserError(f"{folder}: has no {split}-*.parquet, nor has its data/. {had}: root=FOLDER")


def whole(paths: list[Path]) -> list[Path]:
    """The ``paths``, none of which lacks another part beside it: the score would be that of fewer questions."""
    for path in paths:
        if cut := PART.fullmatch(path.name):
            for number in range(int(cut[3])):
                begins = f"{cut[1]}{number:05d}-of-{cut[3]}"
                others = path.parent.glob(f"{begins}-*.parquet") if cut[4] else [path.with_name(f"{begins}.parquet")]
                if not any(other.is_file() for other in others):
                    other = path.with_name(f"{begins}.parquet")
                    raise UserError(f"{other}: is missing beside {path.name}; download it again")
    return paths


def rows_of(path: Path, leave: tuple[str, ...] = ()) -> list[Row]:
    """A file's rows, counted from 1, without the columns to ``leave``. Raises ``UserError`` for a file that is damaged
    or holds none.
    """
    with _reading(path) as parquet:
        file = parquet.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name not in leave]
        rows = file.read(columns=names).to_pylist()
    if not rows:
        raise UserError(f"{path}: holds no question; download it again, or leave out the file")
    return [Row(f"{path}:{number}", row) for number, row in enumerate(rows, 1)]


@dataclass(frozen=True)
class InRow:
    """The picture in a column of a file's row, counted from 1, read when it is called. Raises ``OSError`` where it
    cannot be.
    """

    path: Path
    number: int
    column: str = "image"

    def __call__(self) -> Image.Image:
        try:
            changed = self.path.stat().st_mtime_ns
            group, first = _place(self.path, changed, self.number - 1)
            blob = _group(self.path, changed, group, self.column)[self.number - 1 - first]
        except UserError as error:
            raise OSError(str(error)) from error
        return decoded(blob, f"the picture in row {self.number} of {pictures.short_name(self.path)}")


def decoded(blob: Any, name: str) -> Image.Image:
    """The picture that a row holds: the bytes of a file, under ``bytes``. Raises ``OSError`` where it holds none."""
    data = blob.get("bytes") if isinstance(blob, Mapping) else blob
    if not isinstance(data, bytes) or not data:
        raise OSError(f"{name}: the file holds no picture there")
    return pictures.decode(data, name)


@lru_cache(maxsize=64)
def _starts(path: Path, changed: int) -> tuple[int, ...]:
    with _reading(path) as parquet:
        about = parquet.ParquetFile(path).metadata
        ends = [0]
        for group in range(about.num_row_groups):
            ends.append(ends[-1] + about.row_group(group).num_rows)
    return tuple(ends)


def _place(path: Path, changed: int, row: int) -> tuple[int, int]:
    """The group of rows that holds a row, from 0, and its first row."""
    ends = _starts(path, changed)
    group = next((g for g, end in enumerate(ends[1:]) if row < end), None)
    if group is None:
        raise UserError(f"{path}: has no row {row + 1}; was it changed?")
    return group, ends[group]


@lru_cache(maxsize=2)
def _group(path: Path, changed: int, group: int, column: str) -> list[Any]:
    with _reading(path) as parquet:
        return parquet.ParquetFile(path).read_row_group(group, columns=[column])[column].to_pylist()


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """pyarrow's parquet module; what a damaged file raises is one line."""
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow, the extra 'benchmarks': {installed_by('benchmarks')}"
        ) from error
    try:
        yield parquet
    except (ArrowException, OSError, ValueError, KeyError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as Parquet: {why}; download it again") from error
