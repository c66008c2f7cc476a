"""A split of which a share of the samples is asked at every strength, and the others at the chosen strength alone.

What a sample is asked falls into two parts: ``CHOSEN``, methods without a strength and all others at theirs, and
``OTHERS``, the strengths that were not chosen. Chunks are named after the share; what was answered under another share
is read and not asked again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from factory import files, progress
from factory.benchmark import Rows
from factory.data.sample import ConflictSample
from factory.run.rundir import Stage
from factory.run.samples import thin

Row = Mapping[str, Any]
CHOSEN, OTHERS = "chosen", "others"
PARTS = (CHOSEN, OTHERS)


def swept_samples(samples: Sequence[Any], share: float) -> list[Any]:
    """The samples asked at every strength: a share of all, evenly spread (and so over tasks), one at least."""
    return thin(samples, max(1, round(share * len(samples)))) if share else []


def gather_share(
    stage: Stage,
    samples: Sequence[ConflictSample],
    size: int,
    share: float,
    ask: Callable[[list[ConflictSample], Collection[str]], Rows],
    part_of: Callable[[Row], str],
    cell_of: Callable[[Row], tuple],
) -> Rows:
    """Each sample's rows, both parts of the swept ones', in batches of ``size`` samples and within one cell by cell.
    ``ask`` gives the rows of some parts of some samples, ``part_of`` says which part a row is of, and ``cell_of`` where
    its cell stands among all."""
    swept = {s.id for s in swept_samples(samples, share)}
    wanted = {s.id: PARTS if s.id in swept else (CHOSEN,) for s in samples}
    named = stage.name if share == 1 else f"share{len(swept)}"
    before = [row for key in stage.stored() if not key.startswith(f"{named}-") for row in stage.read(key) or ()]
    known: dict[str, set[str]] = defaultdict(set)
    for row in before:
        known[row["sample"]].add(part_of(row))
    work = {}
    for i, batch in _batches(samples, wanted, size):
        lacking: dict[tuple[str, ...], list[ConflictSample]] = defaultdict(list)
        for s in batch:
            lacking[tuple(part for part in wanted[s.id] if part not in known[s.id])].append(s)
        for parts, some in lacking.items():
            if parts:
                work[_key(named, i, batch, some, parts)] = partial(ask, some, parts)
    found = before + [row for chunk in progress.gather(stage, work) for row in chunk]
    place = {s.id: i for i, s in enumerate(samples)}
    rows = {
        (place[row["sample"]] // size, *cell_of(row), place[row["sample"]]): row
        for row in found
        if part_of(row) in wanted[row["sample"]]
    }
    return [rows[at] for at in sorted(rows)]


def _batches(
    samples: Sequence[ConflictSample], wanted: Mapping[str, Sequence[str]], size: int
) -> Iterator[tuple[int, list[ConflictSample]]]:
    """Batches of samples that are asked alike, the swept ones first, each with its number."""
    first = 0
    for parts in (PARTS, (CHOSEN,)):
        alike = [s for s in samples if wanted[s.id] == parts]
        for i in range(0, len(alike), size):
            yield first + i, alike[i : i + size]
        first += len(alike)


def _key(
    named: str, i: int, batch: Sequence[ConflictSample], some: Sequence[ConflictSample], parts: Sequence[str]
) -> str:
    """A batch's key, and where not all of it is asked all of its parts also what is."""
    whole = len(some) == len(batch) and CHOSEN in parts
    return f"{named}-{i:05d}" + ("" if whole else f"-{'-'.join(parts)}-{files.digest([s.id for s in some])[:8]}")
