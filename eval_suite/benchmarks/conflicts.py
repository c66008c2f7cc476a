"""Your own conflicts, between pictures and texts or between two texts: a CSV or JSONL file and a folder of pictures.

One row is one conflict, in the columns image, context, question, answer_vision (or answer_image) and answer_text; of
two texts, whose names are ``sources``, in context_NAME and answer_NAME of each and question. task, split and id may
stand beside them. Prompts are MC²'s (SPEC 3.2), and so are the scorings, read by ``conflict/2``
with its outcome ``flags`` (SPEC 3.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from os.path import isfile
from pathlib import Path
from random import Random
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from eval_suite.conflict import BLANK, ConflictBenchmark, Order, Scoring, ShownParams, SourceNames
from eval_suite.own_rows import Entry, read
from factory.data import pictures
from factory.data.sample import ConflictSample, no_picture
from factory.data.sources import PICTURE_AND_TEXT, Sources, two_texts
from factory.errors import UserError, quoted
from factory.recipe.paths import RecipePath
from factory.registry import register
from factory.run.inputs import of_samples
from factory.run.inputs import pictures as contents

SPLITS = ("train", "dev", "test")


class ConflictsParams(ShownParams):
    """``file``: the CSV or JSONL file with one conflict in each row. ``images``: the folder that its pictures are named
    from; null takes the file's own. Both are looked for in the recipe's folder, then where one stands. ``sources``:
    the names of two texts that stand against each other in place of a picture and a text, as in [memo, email], and
    ``order`` which of them stands first in a prompt.

    ``scoring``: how an answer is asked for and read (SPEC 3.3). Without a column ``split``, ``test_share`` of the rows
    are test and ``dev_share`` of the rest dev, each task in proportion, as ``seed`` draws them.
    """

    file: RecipePath
    images: RecipePath | None = None
    sources: SourceNames | None = None
    order: Order = "named"
    scoring: Scoring = "both_orders"
    test_share: float = Field(0.2, gt=0, lt=1)
    dev_share: float = Field(0.2, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _sources_are_two_texts(self) -> Self:
        if self.sources and self.images:
            raise ValueError("sources names two texts, which show no pictures; leave images or sources out")
        if self.order == "exchanged" and not self.sources:
            raise ValueError("order: exchanged exchanges two texts, which sources names; name them or leave order out")
        return self


class DividedParams(ShownParams):
    """Of conflicts that are released without splits: ``test_share`` of their pictures are test and ``dev_share`` of the
    rest dev, as ``seed`` draws them. ``asked``: the split that ``benchmarks:`` asks, or all, as the authors do.
    """

    test_share: float = Field(0.4, gt=0, lt=1)
    dev_share: float = Field(0.2, gt=0, lt=1)
    seed: int = 0
    asked: Literal["test", "dev", "all"] = "test"


@register("benchmark", "conflicts")
class OwnConflicts(ConflictBenchmark):
    """Your own conflicts, from a CSV or JSONL file: of a folder's pictures with texts, or of two texts. No picture, and
    no pair of texts, is in two splits.
    """

    Params = ConflictsParams

    def __init__(self, params: ConflictsParams) -> None:
        self.params, self.scoring = params, params.scoring

    @classmethod
    def sources_of(cls, params: ConflictsParams) -> Sources:
        return two_texts(*params.sources) if params.sources else PICTURE_AND_TEXT

    @property
    def evidence(self) -> str:
        """What is never in two splits."""
        return "picture" if self.sources.pictured else "pair of texts"

    @property
    def protocol(self) -> str:
        """Numbers stand beside each other where the test samples are the same."""
        return f"{super().protocol}/{of_samples(self.samples('test'))[:8]}{self.params.control}"

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        return {} if self.params.sources else BLANK

    @cached_property
    def path(self) -> Path:
        return self.params.file.file("file")

    @cached_property
    def folder(self) -> Path:
        return self.params.images.directory("images") if self.params.images else self.path.parent

    @cached_property
    def splits(self) -> dict[str, list[Entry]]:
        """The rows of each split, a task after the other. Raises ``UserError`` where a split has none."""
        entries = read(self.path, self.sources)
        found = contents(path for e in entries if (path := self.find(e)))
        shown = [found[path] if (path := self.find(e)) else e.shown for e in entries]
        place = self._asked_for(entries, shown) if any(e.split for e in entries) else self._drawn(entries, shown)
        tasks = list(dict.fromkeys(e.task for e in entries))
        ordered = sorted(zip(entries, place, strict=True), key=lambda each: tasks.index(each[0].task))
        return {split: [e for e, own in ordered if own == split] for split in SPLITS}

    def _drawn(self, entries: Sequence[Entry], shown: Sequence[str]) -> list[str]:
        members: dict[str, list[str]] = {}
        for e, picture in zip(entries, shown, strict=True):
            members.setdefault(picture, []).append(e.task)
        if len(members) < len(SPLITS):
            raise UserError(
                f"{self.path}: its rows show {len(members)} different {self.evidence.replace('pair', 'pairs')}"
                f"{'s' * self.sources.pictured}, and train, dev and test need one each"
            )
        p = self.params
        drawn = dict(zip(members, divide(list(members.values()), p.test_share, p.dev_share, p.seed), strict=True))
        return [drawn[picture] for picture in shown]

    def _asked_for(self, entries: Sequence[Entry], shown: Sequence[str]) -> list[str]:
        """The splits that the file gives. Raises ``UserError`` for a row without, a picture in two, an empty split."""
        first: dict[str, Entry] = {}
        for e, picture in zip(entries, shown, strict=True):
            if e.split not in SPLITS:
                raise UserError(f"{e.place}: split should be train, dev or test in every row, and is {quoted(e.split)}")
            other = first.setdefault(picture, e)
            if other.split != e.split:
                raise UserError(
                    f"{e.place}: its {self.evidence} {quoted(e.image or e.context_a)} is of split {e.split}, and of"
                    f" {other.split} in {other.place}; give all rows of a {self.evidence} one split"
                )
        if lacking := [split for split in SPLITS if all(e.split != split for e in entries)]:
            raise UserError(
                f"{self.path}: no row is of split {' or '.join(lacking)}; leave the column out to have splits drawn"
            )
        return [e.split for e in entries]

    def samples(self, split: str) -> Sequence[ConflictSample]:
        return [self._sample(e) for e in self.splits[split]]

    def _sample(self, e: Entry) -> ConflictSample:
        texts = (e.question, e.context, e.answer_vision, e.answer_text)
        if not self.sources.pictured:
            return ConflictSample(
                e.id, e.task, *texts, no_picture, place=e.place, flaw=e.flaw, context_a=e.context_a, sources=e.sources
            )
        path = self.find(e)
        load = self.params.load(partial(pictures.load, path or self.folder / e.image))
        about = {"picture": e.image}
        return ConflictSample(e.id, e.task, *texts, load, about, (path,) if path else (), e.place, e.flaw)

    def find(self, e: Entry) -> Path | None:
        """The row's picture; None where there is none."""
        return path if e.image and isfile(path := self.folder / e.image) else None

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        lost = [s for s in samples if s.tags.get("picture") and not s.images]
        if not lost:
            return [], ""
        first = ", ".join(f"{quoted(s.tags['picture'])} ({s.place})" for s in lost[:3]) + ", …" * (len(lost) > 3)
        do = "Put them there, or name another folder: data.images=FOLDER"
        line = f"pictures that are not in {self.folder}: {first}. {do}"
        return [s.id for s in lost], line


def by_picture(rows: Iterable[tuple[str, str]], p: DividedParams, place: object) -> dict[str, str]:
    """The split of each picture, from the picture and the task of each of the ``rows``; each task in proportion. Raises
    ``UserError`` where ``place`` shows fewer than three.
    """
    shown: dict[str, list[str]] = {}
    for picture, task in rows:
        shown.setdefault(picture, []).append(task)
    if len(shown) < len(SPLITS):
        raise UserError(f"{place}: {len(shown)} different pictures; train, dev and test need one each")
    return dict(zip(shown, divide(list(shown.values()), p.test_share, p.dev_share, p.seed), strict=True))


def divide(tasks: Sequence[Sequence[str]], test_share: float, dev_share: float, seed: int) -> list[str]:
    """The split of each of three pictures or more; ``tasks`` are those of each picture's rows.

    Each split has its share of all rows and, within one row, of those of each task, as far as pictures with several
    rows allow; none is empty. The largest pictures are placed first, each where the rows of its tasks are most lacking.
    """
    counts = Counter(task for own in tasks for task in own)
    rows = counts.total()
    test = min(max(1, round(test_share * rows)), rows - 2)
    dev = min(max(1, round(dev_share * (rows - test))), rows - test - 1)
    of_test = _apportioned(counts, test)
    of_dev = _apportioned(counts - of_test, dev)
    wanted = {"train": counts - of_test - of_dev, "dev": of_dev, "test": of_test}
    lacking = {split: Counter(own) for split, own in wanted.items()}
    order = list(range(len(tasks)))
    Random(f"conflicts/{seed}").shuffle(order)
    order.sort(key=lambda i: -len(tasks[i]))
    place, empty = [""] * len(tasks), list(SPLITS)
    for done, i in enumerate(order):
        among = empty if len(tasks) - done == len(empty) else SPLITS
        split = max(among, key=lambda s: sum(lacking[s][task] / max(1, wanted[s][task]) for task in tasks[i]))
        place[i], empty = split, [s for s in empty if s != split]
        lacking[split].subtract(tasks[i])
    return place


def _apportioned(counts: Mapping[str, int], total: int) -> Counter[str]:
    """``total`` rows over tasks in proportion to ``counts``, by the largest remainders."""
    rows = sum(counts.values())
    parts = {task: divmod(total * n, rows) for task, n in counts.items()}
    out = Counter({task: whole for task, (whole, _) in parts.items()})
    out.update(sorted(parts, key=lambda task: -parts[task][1])[: total - out.total()])
    return out
