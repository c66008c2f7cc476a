"""Your own image-text conflicts: a CSV or JSONL file and a folder of pictures.

One row is one conflict, in the columns image, context, question, answer_vision (or answer_image) and answer_text;
task, split and id may stand beside them. Prompts are MC²'s (SPEC 3.2), and so are the scorings, read by ``conflict/2``
with its outcome ``flags`` (SPEC 3.3).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from os.path import isfile
from pathlib import Path
from random import Random
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from eval_suite.conflict import ConflictBenchmark, Scoring
from eval_suite.released import numbered
from eval_suite.scorers.answer_words import spelt
from factory import files
from factory.data import pictures
from factory.data.sample import ConflictSample
from factory.errors import UserError, did_you_mean, quoted
from factory.recipe.paths import RecipePath
from factory.registry import Params, register
from factory.run.inputs import of_samples
from factory.run.inputs import pictures as contents

NEEDED = ("image", "context", "question", "answer_vision", "answer_text")
COLUMNS = (*NEEDED, "task", "split", "id")
ALSO = {"answer_image": "answer_vision"}
SPLITS = ("train", "dev", "test")
READ_AS_JSON = (".jsonl", ".ndjson")
ALL = "all"  # the report's name for every task together
LONGEST_NAME = 80  # characters of a task or an id


class ConflictsParams(Params):
    """``file``: the CSV or JSONL file with one conflict in each row. ``images``: the folder that its pictures are named
    from; null takes the file's own. Both are looked for in the recipe's folder, then where one stands.

    ``scoring``: how an answer is asked for and read (SPEC 3.3). Without a column ``split``, ``test_share`` of the rows
    are test and ``dev_share`` of the rest dev, each task in proportion, as ``seed`` draws them.
    """

    file: RecipePath
    images: RecipePath | None = None
    scoring: Scoring = "both_orders"
    test_share: float = Field(0.2, gt=0, lt=1)
    dev_share: float = Field(0.2, gt=0, lt=1)
    seed: int = 0


class DividedParams(Params):
    """Of conflicts that are released without splits: ``test_share`` of their pictures are test and ``dev_share`` of the
    rest dev, as ``seed`` draws them. ``asked``: the split that ``benchmarks:`` asks, or all, as the authors do.
    ``shown``: the picture, or the control that shows a blank one of its size.
    """

    test_share: float = Field(0.4, gt=0, lt=1)
    dev_share: float = Field(0.2, gt=0, lt=1)
    seed: int = 0
    asked: Literal["test", "dev", "all"] = "test"
    shown: Literal["picture", "blank"] = "picture"

    @property
    def control(self) -> str:
        """What the control adds to a protocol."""
        return "/blank" if self.shown == "blank" else ""

    def load(self, picture: Callable[[], Image.Image]) -> Callable[[], Image.Image]:
        """What is shown in place of a picture: itself, or a white one of its size."""
        return picture if self.shown == "picture" else partial(_blank, picture)


def _blank(picture: Callable[[], Image.Image]) -> Image.Image:
    return Image.new("RGB", picture().size, "white")


@dataclass(frozen=True)
class Entry:
    """One row: where it stands (file:line), what it says, and its split ("" where it names none)."""

    place: str
    id: str
    task: str
    split: str
    image: str
    context: str
    question: str
    answer_vision: str
    answer_text: str

    @property
    def flaw(self) -> str:
        """Why the row cannot be scored, beyond what every sample is checked for."""
        first, second = self.answer_vision, self.answer_text
        if not self.image:
            return "it names no picture under image"
        alike = spelt(first) == spelt(second) if spelt(first) else first == second
        return f"its two answers are the same, {quoted(first)} and {quoted(second)}" if first and alike else ""


@register("benchmark", "conflicts")
class OwnConflicts(ConflictBenchmark):
    """Your own conflicts, from a CSV or JSONL file and a folder of pictures; no picture is in two splits."""

    Params = ConflictsParams

    def __init__(self, params: ConflictsParams) -> None:
        self.params, self.scoring = params, params.scoring

    @property
    def protocol(self) -> str:
        """Numbers stand beside each other where the test samples are the same."""
        return f"{super().protocol}/{of_samples(self.samples('test'))[:8]}"

    @cached_property
    def path(self) -> Path:
        return self.params.file.file("file")

    @cached_property
    def folder(self) -> Path:
        return self.params.images.directory("images") if self.params.images else self.path.parent

    @cached_property
    def splits(self) -> dict[str, list[Entry]]:
        """The rows of each split, a task after the other. Raises ``UserError`` where a split has none."""
        entries = read(self.path)
        found = contents(path for e in entries if (path := self.find(e)))
        shown = [found[path] if (path := self.find(e)) else e.image for e in entries]
        place = _asked_for(self.path, entries, shown) if any(e.split for e in entries) else self._drawn(entries, shown)
        tasks = list(dict.fromkeys(e.task for e in entries))
        ordered = sorted(zip(entries, place, strict=True), key=lambda each: tasks.index(each[0].task))
        return {split: [e for e, own in ordered if own == split] for split in SPLITS}

    def _drawn(self, entries: Sequence[Entry], shown: Sequence[str]) -> list[str]:
        members: dict[str, list[str]] = {}
        for e, picture in zip(entries, shown, strict=True):
            members.setdefault(picture, []).append(e.task)
        if len(members) < len(SPLITS):
            raise UserError(
                f"{self.path}: its rows show {len(members)} different pictures, and train, dev and test need one each"
            )
        p = self.params
        drawn = dict(zip(members, divide(list(members.values()), p.test_share, p.dev_share, p.seed), strict=True))
        return [drawn[picture] for picture in shown]

    def samples(self, split: str) -> Sequence[ConflictSample]:
        return [self._sample(e) for e in self.splits[split]]

    def _sample(self, e: Entry) -> ConflictSample:
        path = self.find(e)
        load = partial(pictures.load, path or self.folder / e.image)
        texts = (e.question, e.context, e.answer_vision, e.answer_text)
        about = {"picture": e.image}
        return ConflictSample(e.id, e.task, *texts, load, about, (path,) if path else (), e.place, e.flaw)

    def find(self, e: Entry) -> Path | None:
        """The row's picture; None where there is none."""
        return path if e.image and isfile(path := self.folder / e.image) else None

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        lost = [s for s in samples if s.tags["picture"] and not s.images]
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


def _asked_for(path: Path, entries: Sequence[Entry], shown: Sequence[str]) -> list[str]:
    """The splits that the file gives. Raises ``UserError`` for a row without, a picture in two, an empty split."""
    first: dict[str, Entry] = {}
    for e, picture in zip(entries, shown, strict=True):
        if e.split not in SPLITS:
            raise UserError(f"{e.place}: split should be train, dev or test in every row, and is {quoted(e.split)}")
        other = first.setdefault(picture, e)
        if other.split != e.split:
            raise UserError(
                f"{e.place}: its picture {quoted(e.image)} is of split {e.split}, and of {other.split} in"
                f" {other.place}; give all rows of a picture one split"
            )
    if lacking := [split for split in SPLITS if all(e.split != split for e in entries)]:
        raise UserError(f"{path}: no row is of split {' or '.join(lacking)}; leave the column out to have splits drawn")
    return [e.split for e in entries]


def read(path: Path) -> list[Entry]:
    """The rows of a file. Raises ``UserError`` with file and line for columns that are unknown, lacking or twice there,
    damaged rows, and ids that two rows share.
    """
    if path.suffix.lower() not in (".csv", *READ_AS_JSON):
        raise UserError(f"{path}: should be a file of rows that ends in .csv or .jsonl")
    rows = _rows_of_csv(path) if path.suffix.lower() == ".csv" else _rows_of_json(path)
    places: dict[str, str] = {}
    entries = []
    for line, raw in rows:
        e = _entry(f"{path}:{line}", line, raw)
        if e.id in places:
            raise UserError(f"{e.place}: the id {quoted(e.id)} stands in {places[e.id]} too; give each row its own")
        places[e.id] = e.place
        entries.append(e)
    if not entries:
        raise UserError(f"{path}: holds no rows")
    return entries


def _rows_of_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, value in numbered(path):
        place = f"{path}:{line}"
        if not isinstance(value, dict):
            raise UserError(f"{place}: should be one object of named fields a line, and is {quoted(value)}")
        yield line, dict(zip(_columns(place, list(value)), value.values(), strict=True))


def _rows_of_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows under the first that is not blank, with the lines that they begin in. What parts cells (a comma, a
    semicolon or a tabulator) is what parts the names of columns.
    """
    text = _text(path)
    head = next((line for line in text.splitlines() if line.strip()), "")
    cells = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for row in cells:
            place, begun, line = f"{path}:{line}", line, cells.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if not columns:
                columns = _columns(place, [cell.strip() for cell in row])
            elif len(row) != len(columns):
                raise UserError(
                    f"{place}: has {len(row)} cells, and the file {len(columns)} columns; a text with a"
                    " comma stands in double quotes"
                )
            else:
                yield begun, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{line}: damaged from here on: {error}") from error


def _text(path: Path) -> str:
    data = files.read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: is not UTF-8 text; save the file as UTF-8 (a spreadsheet: CSV UTF-8)"
        ) from error


def _columns(place: str, names: Sequence[str]) -> list[str]:
    """The names of columns as this module knows them."""
    known = [ALSO.get(name, name) for name in names]
    every = [*COLUMNS, *ALSO]
    for name, own in zip(names, known, strict=True):
        if own not in COLUMNS:
            hint = did_you_mean(name, every)
            raise UserError(f"{place}: unknown column {quoted(name)}.{hint} There are: {', '.join(every)}")
        if known.count(own) > 1:
            raise UserError(f"{place}: the column {own} is there twice ({', '.join(names)})")
    if lacking := [name for name in NEEDED if name not in known]:
        raise UserError(f"{place}: has no {', '.join(lacking)}; every row needs {', '.join(NEEDED)}")
    return known


def _entry(place: str, line: int, raw: Mapping[str, Any]) -> Entry:
    texts = {name: _said(place, name, raw.get(name)) for name in COLUMNS}
    texts["task"] = texts["task"] or "conflict"
    texts["id"] = texts["id"] or f"line-{line}"
    for name in ("task", "id"):
        if len(texts[name]) > LONGEST_NAME or not texts[name].isprintable():
            most = f"at most {LONGEST_NAME} visible characters"
            raise UserError(f"{place}: {name} should be a name of {most}, and is {quoted(texts[name])}")
    if texts["task"] == ALL:
        raise UserError(f"{place}: no task can be called '{ALL}', which stands for all tasks together")
    return Entry(place, **texts)


def _said(place: str, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise UserError(f"{place}: {name} should be a text, and is {quoted(value)}")
    return "" if value is None else str(value).strip()
