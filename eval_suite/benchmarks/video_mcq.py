"""Multiple-choice questions about videos, from released files and a folder of frames for each video.

Read are the CSV of NExT-QA (columns video, question, answer, qid, type, a0 to a4; github.com/doc-doc/NExT-QA at
dataset/nextqa) and JSON or JSONL in which a row has ``video``, ``question``, ``candidates`` (or ``options``) and
``answer``, as MVBench's files have them. The prompt is ours: the frames in their order, the question, the options.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from eval_suite.benchmark import LETTER, AnswerBenchmark, Item
from eval_suite.released import Question, Row, entries_of, lines_of, once, read_json
from eval_suite.scorers.exact import LETTERS
from eval_suite.scorers.reading import Reading
from eval_suite.scorers.video_mcq import RULE, reading
from factory import files
from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError, quoted
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

SORTS = {"C": "causal", "T": "temporal", "D": "descriptive"}  # NExT-QA's, by the first letter of a type
MAP = "map_vid_vidorID.json"  # NExT-QA's: where a video lies, by its number
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
PREFIX = re.compile(r"^\s*\(?([A-Z])[.):]\s+")  # of an option that brings its letter along


class VideoMcqParams(Params):
    """``file``: the released CSV, JSON or JSONL. ``frames``: the folder that holds a folder of pictures for each video,
    named as the file names the video, its ending aside, or as NExT-QA's map beside the file does.

    ``number`` frames are shown, evenly spread. Where a row has ``start`` and ``end``, in seconds, ``fps`` says how many
    pictures there are of a second, and those between are taken; null takes the whole video.
    """

    file: RecipePath
    frames: RecipePath
    number: PositiveInt = 8
    fps: float | None = Field(None, gt=0)


@register("benchmark", "video_mcq")
class VideoMcq(AnswerBenchmark):
    """Videos as several pictures, with options: share of right letters, by sort of question too; a video is one unit of
    the intervals.
    """

    Params = VideoMcqParams
    profile = "options"
    scorer = RULE
    new_tokens = 16

    @cached_property
    def path(self) -> Path:
        return self.params.file.file("file", "Name the released CSV, JSON or JSONL: file=FILE")

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/{self.path.stem}/{self.params.number}-frames"

    def items(self) -> Sequence[Item]:
        items = [self._item(name, row) for name, row in self._rows()]
        if items and not any(item.images[0].is_file() for item in items):
            raise UserError(
                f"frames {quoted(self.params.frames)}: holds no pictures of any of the {len(items):,} questions'"
                f" videos; the first should lie in {items[0].images[0].parent}"
            )
        return items

    def _rows(self) -> Iterator[tuple[str, Row]]:
        kind = self.path.suffix.lower()
        if kind == ".csv":
            yield from once(_table(self.path), "video", "qid")
            return
        if kind not in (".json", ".jsonl"):
            raise UserError(f"{self.path}: should be a file that ends in .csv, .json or .jsonl")
        rows = entries_of(self.path) if kind == ".json" else lines_of(self.path)
        yield from ((f"{self.path.stem}-{number:05d}", row) for number, row in enumerate(rows))

    def _item(self, name: str, row: Row) -> Item:
        video, question, options = row.key("video"), row.text("question"), _options(row)
        gold = (options, _answer(row, options))
        shown = self._shown(video, row)
        lines = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        texts = (Segment(Role.QUESTION, question), Segment(Role.OPTIONS, f"{lines}\n{LETTER}"))

        def make() -> Prompt:
            return Prompt((*(Segment(Role.IMAGE, image=pictures.load(path)) for path in shown), *texts))

        words = tuple((int(segment.role), segment.text) for segment in texts)
        return Item(name, Question(words, make), gold, _sorts(row, self.path), video, tuple(shown))

    def _shown(self, video: str, row: Row) -> list[Path]:
        """The frames of a row, evenly spread; one that is not there where the video has none."""
        folder = self.params.frames.directory("frames")
        stem = video if (folder / video).is_dir() else str(Path(video).with_suffix(""))
        place = next((p for n in (stem, self.map.get(stem, stem)) if (p := folder / n).is_dir()), folder / stem)
        there = _frames(place)
        if self.params.fps is not None and "start" in row and "end" in row:
            first, last = (round(float(row.value(at)) * self.params.fps) for at in ("start", "end"))
            there = there[first : max(last, first + 1)]
        if not there:
            return [place / "(no frames)"]
        n, k = len(there), min(self.params.number, len(there))
        return [there[(2 * i + 1) * n // (2 * k)] for i in range(k)]

    @cached_property
    def map(self) -> dict[str, str]:
        path = self.path.parent / MAP
        return Row(str(path), read_json(path)).values if path.is_file() else {}

    def wanted(self, item: Item) -> str:
        return LETTERS[item.gold[1]]

    def read(self, item: Item, text: str) -> Reading:
        return reading(text, *item.gold)


def _table(path: Path) -> list[Row]:
    """The rows of a CSV with a line of names; each is told by the line that it ends in."""
    text = files.read_bytes(path).decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for values in reader:
            row = Row(f"{path}:{reader.line_num}", values)
            if None in values or None in values.values():
                raise row.fault("it has more cells than there are columns, or fewer")
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: damaged from here on: {error}") from error
    return rows


def _options(row: Row) -> list[str]:
    numbered = [name for name in row.values if re.fullmatch(r"a\d+", name)]
    if numbered:
        return [row.text(name) for name in sorted(numbered, key=lambda name: int(name[1:]))]
    options = row.texts("candidates" if "candidates" in row else "options", least=2)
    if len(options) > len(LETTERS):
        raise row.fault(f"{len(options)} options are more than there are letters")
    led = [PREFIX.match(option) for option in options]
    whole = all(m and m[1] == letter for m, letter in zip(led, LETTERS, strict=False))
    return [PREFIX.sub("", option) for option in options] if whole else options


def _answer(row: Row, options: Sequence[str]) -> int:
    """The right option: its number from 0, its letter, or its text."""
    told = row.value("answer")
    if isinstance(told, str) and told in options:
        return options.index(told)
    if isinstance(told, str) and len(told) == 1 and told in LETTERS[: len(options)]:
        return LETTERS.index(told)
    number = int(row.among("answer", *map(str, range(len(options)))))
    return number


def _sorts(row: Row, path: Path) -> tuple[str, ...]:
    """What a question is reported under: NExT-QA's sort and type, or the file's own name for its task."""
    if "type" in row:
        kind = row.key("type")
        return (SORTS[kind[0]], kind) if kind[0] in SORTS else (kind,)
    return (row.key("task_type") if "task_type" in row else path.stem,)


def _frames(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of the numbers in their names."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in ENDINGS), key=_numbered)


def _numbered(path: Path) -> list[Any]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
