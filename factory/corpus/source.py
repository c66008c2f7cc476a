"""Where instruction-tuning samples come from: a file of conversations on disk, indexed and checked before anything
heavy starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from factory.benchmark import WithLessons
from factory.corpus.audit import Audit
from factory.corpus.conversation import Conversation, parse
from factory.corpus.index import Check, indexed
from factory.corpus.order import subset
from factory.corpus.records import reader
from factory.data.prompt import Prompt
from factory.errors import UserError


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

    def task(self, index: int) -> str:
        """Of which kind the sample is, where the source says so; reads no image."""


class Audited(Source, Protocol):
    """Samples of a file or folder, which an audit has seen: ``numbers`` [n] of those that can be used."""

    audit: Audit
    numbers: np.ndarray


class ConversationFile:
    """LLaVA-JSON or messages in JSONL, in one JSON array or in Parquet; memory is a few bytes a sample, an image is
    read when its sample is.

    Args: ``folder`` of the images; ``cache`` a folder for the index, which is built once (the file is read through,
    every record is parsed and every image's header read, or with ``decode`` every image) and taken again while file and
    images are the same; ``max_skipped`` the share of samples that may be unusable; ``take`` and ``seed`` draw a subset;
    ``check`` refuses what a model cannot take; ``tell`` is shown what was found, before anything is refused;
    ``mask_history``: each sample's last answer alone is learnt.
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
        check: Check | None = None,
        decode: bool = False,
        tell: Callable[[Audit], None] = lambda _: None,
        mask_history: bool = False,
    ) -> None:
        self.path, self.folder, self.mask_history = path, folder, mask_history
        if not path.is_file():
            kind = "is a folder; name the file in it" if path.is_dir() else "not found. Give it"
            raise UserError(f"data file {path}: {kind} as tune.data.path")
        index, self.audit = indexed(path, folder, cache, check, decode, tick)
        tell(self.audit)
        self.audit.allow(max_skipped, path, folder)
        usable = np.flatnonzero(index["usable"])
        self.numbers = usable[subset(len(usable), take, seed)]
        self.index = index[self.numbers]
        self._reader = reader(path)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        conversation = self.conversation(index)
        return Sample(conversation.id, conversation.prompt(self.folder))

    def conversation(self, index: int) -> Conversation:
        entry = self.index[index]
        return parse(
            self._reader.read(int(entry["offset"]), int(entry["size"])), int(self.numbers[index]), self.mask_history
        )

    def lengths(self, image: int) -> np.ndarray:
        return self.index["characters"].astype(np.int64) + image * self.index["images"].astype(np.int64)

    def name(self, index: int) -> str:
        return self.conversation(index).id

    def task(self, index: int) -> str:
        return self.conversation(index).task


class Lessons:
    """A benchmark's training lessons as samples: ``total`` of them, each drawn from its number."""

    def __init__(self, benchmark: WithLessons, batch: int, total: int) -> None:
        self.benchmark, self.batch, self.total = benchmark, batch, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.name(index), self._prompt(index))

    def _prompt(self, index: int) -> Prompt:
        return self.benchmark.lesson(index, self.batch, self.total)

    def lengths(self, image: int) -> np.ndarray:
        prompts = map(self._prompt, range(self.total))
        return np.array([sum(len(s.text) for s in p.segments) + image * len(p.images) for p in prompts])

    def name(self, index: int) -> str:
        return f"{self.benchmark.name} {index}"

    def task(self, index: int) -> str:
        return self._prompt(index).task


Opened = Audited | Lessons
"""What a recipe's samples are read from."""
