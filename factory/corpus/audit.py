"""What the reading of a data file before anything heavy finds: how many rows cannot be used, why, and the first of each
kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from factory import files
from factory.corpus.conversation import Unusable
from factory.errors import UserError

NAMED = 20
MISSING = "image is missing"


@dataclass
class Audit:
    """Counts over a file's rows, filled row by row with ``add``; ``troubles`` are the kinds of rows that cannot be
    used, each with its count and the first of them. ``named`` are the first such rows, ``digest`` is that of what
    the file and its pictures hold, ``times`` that of the pictures' sizes and times. ``smallest`` and ``largest`` are
    width and height of the pictures with the fewest and the most pixels.
    """

    samples: int = 0
    images: int = 0
    missing: int = 0
    without: int = 0
    longest: int = 0
    longest_name: str = ""
    troubles: dict[str, tuple[int, str]] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    digest: str = ""
    times: str = ""

    def add(self, name: str, characters: int, images: int, fault: Unusable | None) -> None:
        """One row: its characters, its pictures and, where it cannot be used, why."""
        self.samples += 1
        self.images += images
        self.without += fault is None and not images
        if characters > self.longest:
            self.longest, self.longest_name = characters, name
        if fault is not None:
            said = f"sample {name}: {fault}"
            count, first = self.troubles.get(fault.kind, (0, said))
            self.troubles[fault.kind] = (count + 1, first)
            if len(self.named) < NAMED:
                self.named.append(said)

    def see(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Width and height of pictures that a row has."""
        for size in sizes:
            area = size[0] * size[1]
            if self.smallest is None or area < self.smallest[0] * self.smallest[1]:
                self.smallest = size
            if self.largest is None or area > self.largest[0] * self.largest[1]:
                self.largest = size

    @classmethod
    def together(cls, audits: Sequence[Audit]) -> Audit:
        """One audit of several files."""
        whole = cls()
        for one in audits:
            whole.samples, whole.images = whole.samples + one.samples, whole.images + one.images
            whole.missing, whole.without = whole.missing + one.missing, whole.without + one.without
            if one.longest > whole.longest:
                whole.longest, whole.longest_name = one.longest, one.longest_name
            whole.see([size for size in (one.smallest, one.largest) if size])
            for kind, (n, first) in one.troubles.items():
                before, said = whole.troubles.get(kind, (0, first))
                whole.troubles[kind] = (before + n, said)
            whole.named = [*whole.named, *one.named][:NAMED]
        whole.digest = files.digest([one.digest for one in audits])
        whole.times = files.digest([one.times for one in audits])
        return whole

    @property
    def unusable(self) -> int:
        return sum(count for count, _ in self.troubles.values())

    @property
    def share(self) -> float:
        """The share of the rows that cannot be used."""
        return self.unusable / self.samples if self.samples else 0.0

    def message(self, path: Path | str, folder: Path) -> str:
        if not self.samples:
            return f"{path}: holds no sample"
        shown = "; ".join(self.named[:3])
        lost = f", and {self.missing} of the {self.images} images named are not under {folder}" if self.missing else ""
        return f"{path}: {self.unusable} of {self.samples} samples cannot be used{lost}. The first: {shown}"

    def allow(self, share: float, path: Path | str, folder: Path) -> None:
        """Raises ``UserError`` where more than ``share`` of the rows cannot be used, or none can."""
        if self.unusable == self.samples or self.unusable > share * self.samples:
            raise UserError(f"{self.message(path, folder)} (tune.data.max_skipped={share:g})")

    def table(self, path: Path | str, tokens: Callable[[tuple[int, int]], int] | None = None) -> Table:
        """All of it, for a person; ``tokens`` tells how many a picture of a size takes."""
        table = Table("data", "rows", "", title=Text(str(path)), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_row(
            "read", f"{self.samples:,}", Text(f"the longest, {self.longest_name}: {self.longest:,} characters")
        )
        without = f"{100 * self.without / max(self.samples - self.unusable, 1):.3g} % of the usable rows"
        table.add_row("without a picture", f"{self.without:,}", without)
        if tokens and self.smallest and self.largest:
            said = [f"{w:,} x {h:,} takes {tokens((w, h)):,}" for w, h in dict.fromkeys((self.smallest, self.largest))]
            table.add_row("image tokens", "", "of a picture: " + ", ".join(said))
        for kind, (count, first) in sorted(self.troubles.items(), key=lambda item: -item[1][0]):
            table.add_row(Text(kind, "yellow"), f"{count:,}", Text(first))
        return table

    def record(self) -> dict[str, Any]:
        """What is kept of it as JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: Any) -> Audit:
        """The audit that ``record`` gave. Raises ``ValueError`` or ``TypeError`` for anything else."""
        audit = cls(**record)
        audit.smallest, audit.largest = (
            size and (int(size[0]), int(size[1])) for size in (audit.smallest, audit.largest)
        )
        audit.troubles = {str(kind): (int(count), str(first)) for kind, (count, first) in audit.troubles.items()}
        counts = (audit.samples, audit.images, audit.missing, audit.without, audit.longest)
        if not all(isinstance(n, int) for n in counts) or not isinstance(audit.digest + audit.times, str):
            raise ValueError("not the record of an audit")
        return audit
