"""MMMU (Yue et al. 2024): college questions in thirty subjects, up to seven pictures within the text."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from eval_suite.benchmark import LETTER, SHORT, AnswerBenchmark, Item, Record
from eval_suite.released import field_of
from eval_suite.scorers.exact import LETTERS
from eval_suite.scorers.mmmu import RULE, score_choice, score_open
from eval_suite.scorers.reading import Reading
from factory.data import pictures
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.registry import Params, register

PLACE = re.compile(r"<image (\d)>")


class MmmuParams(Params):
    """``root`` holds a folder per subject with SPLIT-*.parquet; ``seed`` decides the draws for answers that name no
    option.
    """

    root: str
    split: Literal["dev", "validation", "test"] = "validation"
    subjects: tuple[str, ...] = ()
    seed: int = 42


@register("benchmark", "mmmu")
class Mmmu(AnswerBenchmark):
    """MMMU: micro accuracy over all questions and by subject, with the share of answers that the rule had to guess."""

    Params = MmmuParams
    scorer = RULE

    def missing(self) -> str | None:
        return "the answers are hidden: hand in the submission file" if self.split == "test" else None

    def items(self) -> Sequence[Item]:
        root = Path(self.params.root).expanduser()
        paths = sorted(root.glob(f"*/{self.split}-*.parquet"))
        paths = [p for p in paths if not self.params.subjects or p.parent.name in self.params.subjects]
        if not paths:
            raise UserError(
                f"{root}: has no SUBJECT/{self.split}-*.parquet; download the dataset MMMU/MMMU and give its folder:"
                " root=FOLDER"
            )
        return [self.item(path, row) for path in paths for row in _rows(path)]

    def item(self, path: Path, row: dict[str, Any]) -> Item:
        """The question in one row of a subject's file."""
        number, question, answer, kind = field_of(path, row, "id", "question", "answer", "question_type")
        options = (
            dict(zip(LETTERS, ast.literal_eval(row["options"]), strict=False)) if kind == "multiple-choice" else {}
        )
        listed = "\n".join(f"({letter}) {text}" for letter, text in options.items())
        ask = f"{listed}\n\n{LETTER}" if options else f"\n{SHORT}"
        shown = {i: row.get(f"image_{i}") for i in range(1, 8)}
        golds = [str(a) for a in ast.literal_eval(answer)] if not options and answer.startswith("[") else [answer]
        return Item(number, interleaved(question, ask, shown), (options, golds), (path.parent.name,))

    def read(self, item: Item, text: str) -> Reading:
        options, golds = item.gold
        if options:
            return score_choice(text, options, golds[0], item.id, self.params.seed)
        return score_open(text, golds)

    def submission(self, records: Sequence[Record]) -> tuple[str, Any] | None:
        return f"mmmu_{self.split}_answers.json", {r["sample"]: r["parsed"] or "" for r in records}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow; install the extra: pip install 'steering-factory[benchmarks]'"
        ) from error
    yield from parquet.read_table(path).to_pylist()


def interleaved(question: str, ask: str, shown: dict[int, Any]) -> Callable[[], Prompt]:
    """A prompt whose pictures stand where the text says <image k>; pictures the text never names come first."""
    named = {int(k) for k in PLACE.findall(question + ask)}

    def make() -> Prompt:
        segments = [_shown(blob) for k, blob in shown.items() if blob and k not in named]
        for role, text in ((Role.QUESTION, question), (Role.OPTIONS, ask)):
            for i, piece in enumerate(PLACE.split(text)):
                if i % 2:
                    segments.append(_shown(shown[int(piece)]))
                elif piece:
                    segments.append(Segment(role, piece))
        return Prompt(tuple(segments))

    return make


def _shown(blob: Any) -> Segment:
    if not blob or not blob.get("bytes"):
        raise OSError("the file holds no picture where the text names one")
    return Segment(Role.IMAGE, image=pictures.decode(blob["bytes"], "the picture in its row"))
