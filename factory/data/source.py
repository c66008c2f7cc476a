"""Where instruction-tuning samples come from: a file of conversations on disk, indexed and checked before anything
heavy starts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from factory import files
from factory.data.conversation import Conversation, Unusable, parse
from factory.data.order import subset
from factory.data.prompt import Prompt
from factory.data.records import RecordReader, scan
from factory.errors import UserError

NAMED = 20
ENTRY = np.dtype([("offset", "<u8"), ("size", "<u4"), ("characters", "<u4"), ("images", "<u2"), ("usable", "?")])


@dataclass(frozen=True)
class Sample:
    """A prompt with its answers, ready to be tokenized; ``id`` names it in messages."""

    id: str
    prompt: Prompt


class Source(Protocol):
    """Samples by number. ``lengths(image)`` [n] are characters, an image counting as ``image`` of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Raises ``Unusable`` for a sample that cannot be used after all, such as one whose image is damaged."""

    def lengths(self, image: int) -> np.ndarray: ...

    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class Audit:
    """What the check of a file found: how many samples cannot be used, how many images are missing, the first of them
    by name; its sha256.
    """

    samples: int
    unusable: int
    images: int
    missing: int
    named: list[str]
    digest: str

    def message(self, path: Path, folder: Path) -> str:
        if not self.samples:
            return f"{path}: holds no sample"
        shown = "; ".join(self.named[:3])
        lost = f", and {self.missing} of the {self.images} images named are not under {folder}" if self.missing else ""
        return f"{path}: {self.unusable} of {self.samples} samples cannot be used{lost}. The first: {shown}"


class ConversationFile:
    """LLaVA-JSON or messages in JSONL or in one JSON array; memory is a few bytes a sample, an image is read when its
    sample is.

    Args: ``folder`` of the images; ``cache`` a folder for the index, which is built once (the file is read through,
    every record is parsed and every image path looked for) and taken again while file and folder are the same;
    ``max_skipped`` the share of samples that may be unusable; ``take`` and ``seed`` draw a subset.
    Raises ``UserError``, with counts and names, where more samples than that cannot be used.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        cache: Path,
        max_skipped: float = 0.0,
        take: int | None = None,
        seed: int = 0,
        tick: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.path, self.folder = path, folder
        if not path.is_file():
            raise UserError(f"data file {path}: not found. Give it as tune.data.path")
        index, self.audit = _indexed(path, folder, cache, max_skipped, tick)
        if not self.audit.samples or self.audit.unusable > max_skipped * self.audit.samples:
            raise UserError(f"{self.audit.message(path, folder)} (tune.data.max_skipped={max_skipped:g})")
        usable = np.flatnonzero(index["usable"])
        self.numbers = usable[subset(len(usable), take, seed)]
        self.index = index[self.numbers]
        self._reader = RecordReader(path)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        conversation = self.conversation(index)
        return Sample(conversation.id, conversation.prompt(self.folder))

    def conversation(self, index: int) -> Conversation:
        entry = self.index[index]
        return parse(self._reader.read(int(entry["offset"]), int(entry["size"])), int(self.numbers[index]))

    def lengths(self, image: int) -> np.ndarray:
        return self.index["characters"].astype(np.int64) + image * self.index["images"].astype(np.int64)

    def name(self, index: int) -> str:
        return self.conversation(index).id


def _indexed(
    path: Path, folder: Path, cache: Path, max_skipped: float, tick: Callable[[int], None]
) -> tuple[np.ndarray, Audit]:
    """The index of a file and its audit, from ``cache`` where they are of this very file. A refused file is checked
    anew each time.
    """
    stat = path.stat()
    about = {
        "path": str(path.resolve()),
        "size": stat.st_size,
        "mtime": stat.st_mtime_ns,
        "folder": str(folder.resolve()),
        "form": 2,
    }
    stem = cache / f"index-{files.digest(about)[:16]}"
    table, report = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if report.is_file():
        return np.load(table, mmap_mode="r"), Audit(**files.read_json(report))
    index, audit = build_index(path, folder, tick)
    if audit.unusable <= max_skipped * audit.samples:
        files.write_npy(table, index)
        files.write_json(report, vars(audit))
    return index, audit


def build_index(path: Path, folder: Path, tick: Callable[[int], None] = lambda _: None) -> tuple[np.ndarray, Audit]:
    """Read a file through once: place, length and soundness of each record [n]. ``tick`` is told the bytes read so
    far.
    """
    entries, blocks, named = [], [], []
    unusable = images = missing = 0
    at = str(folder)
    for number, (offset, size, record) in enumerate(scan(path)):
        characters = count = 0
        try:
            conversation = parse(record, number)
            characters, count = conversation.characters, len(conversation.images)
            lost = [image for image in conversation.images if not os.path.isfile(os.path.join(at, image))]
            images, missing, reason = (
                images + count,
                missing + len(lost),
                f"its image {lost[0]} is missing" if lost else None,
            )
        except Unusable as error:
            reason = str(error)
        if reason is not None:
            unusable += 1
            if len(named) < NAMED:
                named.append(f"sample {record.get('id', number)}: {reason}")
        entries.append((offset, size, characters, count, reason is None))
        if len(entries) == 50_000:
            blocks.append(np.array(entries, ENTRY))
            entries = []
            tick(offset + size)
    index = np.concatenate([*blocks, np.array(entries, ENTRY)])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return index, Audit(len(index), unusable, images, missing, named, digest)


class Lessons:
    """A benchmark's training lessons as samples: ``total`` of them, each drawn from its number."""

    def __init__(self, benchmark: Any, batch: int, total: int) -> None:
        self.benchmark, self.batch, self.total = benchmark, batch, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.name(index), self.benchmark.lesson(index, self.batch, self.total))

    def lengths(self, image: int) -> np.ndarray:
        prompts = (self.benchmark.lesson(i, self.batch, self.total) for i in range(self.total))
        return np.array([sum(len(s.text) for s in p.segments) + image * len(p.images) for p in prompts])

    def name(self, index: int) -> str:
        return f"{self.benchmark.name} {index}"
