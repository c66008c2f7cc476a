"""``rescore BENCHMARK ANSWERS``: answers that came from elsewhere, scored as the benchmark scores a run's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval_suite.commands import Command
from eval_suite.elsewhere import SHOWN, Fields, Matched, answers_of
from eval_suite.rescore import matched, metric_table, outcome_rows, outcome_table, scored
from factory import files
from factory.benchmark import Conflicts, Harness
from factory.errors import UserError
from factory.plain import say
from factory.recipe.nodes import node_of
from factory.registry import lookup, register

FOLDERS = ("root", "images", "file")  # a benchmark's parameter that --data names, the first that it has


@register("command", "rescore")
class Rescore(Command):
    """Score answers that came from elsewhere (JSON or JSONL) as a benchmark scores a run's: a table of outcomes or
    metrics with 95 % intervals, and a file with a row for each answer. Files of answers that the authors of clash and
    chartqa_conflict release are read as they are, and their verdicts held against ours.
    """

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("benchmark", metavar="BENCHMARK", help="its name, such as clash (list benchmark)")
        parser.add_argument("answers", type=Path, metavar="ANSWERS", help="a file of answers, .json or .jsonl")
        parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="the benchmark's own, such as seed=1")
        parser.add_argument("--data", metavar="FOLDER", help="its released files, as root=FOLDER in a recipe")
        parser.add_argument("--id", metavar="FIELD", help="the field that names what a row answers")
        parser.add_argument("--answer", metavar="FIELD", help="the field that holds a row's answer")
        parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/rescored/…, named after both")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        benchmark = _made(args.benchmark, args.options, args.data)
        rows, fields = answers_of(args.answers), Fields(args.id, args.answer)
        out = args.out or Path(
            "runs", "rescored", files.file_name(args.benchmark, args.answers.parent.name, args.answers.stem)
        )
        say(f"{args.answers}: {len(rows):,} rows; scored by {benchmark.scorer}")
        if isinstance(benchmark, Conflicts):
            found = matched(benchmark, rows, fields)
            table = outcome_rows(found.told, benchmark.scorer, benchmark.sources.names)
            kept: list[dict[str, Any]] = [_kept(each) for each in found.told]
            text = outcome_table(table, benchmark.sources.names)
        else:
            kept, found = scored(benchmark, rows, fields)
            table = benchmark.rows(kept)
            text = metric_table(table)
        about = {"benchmark": args.benchmark, "scorer": benchmark.scorer}
        files.write_jsonl(out / "rows.jsonl", kept)
        files.write_json(out / "table.json", [{**about, **row} for row in table])
        files.write_text(out / "table.md", text)
        print(f"\n{text}")
        _say_left(found)
        _say_agreement(found)
        say(f"{out}: table.md, table.json, rows.jsonl")


def _made(name: str, options: Sequence[str], data: str | None) -> Any:
    """The benchmark. Raises ``UserError`` for one that asks for itself, and for parameters that it has not."""
    cls = lookup("benchmark", name)
    if issubclass(cls, Harness):
        raise UserError(f"{name}: a harness of its own scores its questions; give the answers to that")
    known = cls.Params.model_fields
    given: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in known:
            raise UserError(f"{name}: '{option}' is no KEY=VALUE of its own; it has {', '.join(known)}")
        given[key] = yaml.safe_load(value)
    if data is not None:
        key = next((key for key in FOLDERS if key in known), "")
        if not key:
            raise UserError(f"{name}: reads no released files; leave --data out")
        given[key] = data
    return node_of("benchmark", {"type": name, **given}).make()


def _kept(told: Any) -> dict[str, Any]:
    row = {
        "place": told.place,
        "sample": told.sample,
        "task": told.task,
        "answers": list(told.texts),
        "outcome": told.verdict,
        "found": told.found,
    }
    if told.official is None:
        return row
    return {**row, "released": told.released, "released_outcome": told.official, "equal": told.found == told.released}


def _say_left(found: Matched) -> None:
    for reason in dict.fromkeys(each.why for each in found.left):
        places = [each.place for each in found.left if each.why == reason]
        more = ", …" * (len(places) > SHOWN)
        say(f"left out: {len(places):,} ({reason}): {', '.join(places[:SHOWN])}{more}")
    if found.unanswered:
        say(f"without an answer here: {found.unanswered:,} samples of the benchmark; shares are of those answered")


def _say_agreement(found: Matched) -> None:
    held = [each for each in found.told if each.official is not None]
    if held:
        differ = [each.place for each in held if each.found != each.released]
        first = f": {', '.join(differ[:SHOWN])}{', …' * (len(differ) > SHOWN)}" if differ else ""
        say(f"released verdicts: {len(held):,} rows, {len(differ):,} differ{first}")
