"""MMMU (Yue et al. 2024): college questions in thirty subjects, up to seven pictures within the text."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from eval_suite import parquet
from eval_suite.benchmark import LETTER, SHORT, AnswerBenchmark, Item, Record
from eval_suite.released import RELEASED, Row
from eval_suite.scorers.exact import LETTERS
from eval_suite.scorers.mmmu import RULE, score_choice, score_open
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError, did_you_mean
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

PLACE = re.compile(r"<image (\d)>")


class MmmuParams(Params):
    """``root`` holds a folder per subject with SPLIT-*.parquet; ``seed`` decides the draws for answers that name no
    option.

    ``subjects`` to ask, none for all.
    """

    root: RecipePath
    split: Literal["dev", "validation", "test"] = "validation"
    subjects: tuple[str, ...] = ()
    seed: int = 42


@register("benchmark", "mmmu")
class Mmmu(AnswerBenchmark):
    """MMMU: micro accuracy over all questions and by subject, with the share of answers that the rule had to guess."""

    Params = MmmuParams
    scorer = RULE

    def unscorable(self) -> str | None:
        return "the answers are hidden: hand in the submission file" if self.split == "test" else None

    def items(self) -> Sequence[Item]:
        root = self.params.root.directory("root", RELEASED)
        paths = sorted(root.glob(f"*/{self.split}-*.parquet"))
        if not paths:
            raise UserError(
                f"{root}: has no SUBJECT/{self.split}-*.parquet; download the dataset MMMU/MMMU and give its folder:"
                " root=FOLDER"
            )
        there = {path.parent.name for path in parquet.whole(paths)}
        if lacking := sorted(set(self.params.subjects) - there):
            raise UserError(f"{root}: has no {lacking[0]}/{self.split}-*.parquet.{did_you_mean(lacking[0], there)}")
        chosen = self.params.subjects or there
        return [
            self.item(path, row.values, number)
            for path in paths
            if path.parent.name in chosen
            for number, row in enumerate(parquet.rows_of(path), 1)
        ]

    def item(self, path: Path, entry: dict[str, Any], number: int = 1) -> Item:
        """The question in one row, counted from 1, of a subject's file."""
        row = Row(f"{path}:{number}", entry)
        options, golds = {}, [row.text("answer")]
        if row.among("question_type", "multiple-choice", "open", "short-answer") == "multiple-choice":
            options = dict(zip(LETTERS, _listed(row, "options"), strict=False))
            if self.unscorable() is None:
                row.among("answer", *options)
        elif golds[0].startswith("["):
            golds = _listed(row, "answer")
        listed = "\n".join(f"({letter}) {text}" for letter, text in options.items())
        question, ask = row.text("question"), f"{listed}\n\n{LETTER}" if options else f"\n{SHORT}"
        shown = {i: entry.get(f"image_{i}") for i in range(1, 8)}
        return Item(
            row.key("id"),
            interleaved(question, ask, shown),
            (options, golds),
            (path.parent.name,),
            pictures_first=pictures_first(question, ask, shown),
        )

    def wanted(self, item: Item) -> str:
        return ", ".join(item.gold[1])

    def read(self, item: Item, text: str) -> Reading:
        options, golds = item.gold
        if options:
            return score_choice(text, options, golds[0], item.id, self.params.seed)
        return score_open(text, golds)

    def submission(self, records: Sequence[Record]) -> tuple[str, Any] | None:
        return f"mmmu_{self.split}_answers.json", {r["sample"]: r["parsed"] or "" for r in records}


def _listed(row: Row, name: str) -> list[str]:
    """The texts of a list that is written as Python writes it, as the released files have it."""
    try:
        value = ast.literal_eval(row.text(name))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or not value or not all(isinstance(each, str | int | float) for each in value):
        raise row.fault(f"'{name}' should be a list of texts, and is {row.values[name][:60]!r}")
    return [str(each) for each in value]


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


def pictures_first(question: str, ask: str, shown: dict[int, Any]) -> Callable[[], Prompt]:
    """The same question as LLaVA's scripts put it: every picture, then the text, in which each <image k> stays as a
    name.
    """
    named = {int(k) for k in PLACE.findall(question + ask)}

    def make() -> Prompt:
        seen = [_shown(blob) for k, blob in shown.items() if blob or k in named]
        return Prompt((*seen, Segment(Role.QUESTION, question), Segment(Role.OPTIONS, ask)))

    return make


def _shown(blob: Any) -> Segment:
    return Segment(Role.IMAGE, image=parquet.decoded(blob, "the picture in its row"))
