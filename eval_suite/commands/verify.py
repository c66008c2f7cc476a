"""``verify RUN|TABLE``: every number of a results file, or of a document's tables of outcomes, recomputed from the
answers that runs kept.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_suite.commands import Command
from eval_suite.documented import Table, tables
from eval_suite.released import read_json, read_jsonl
from factory.benchmark import Conflicts, Harness, Questions
from factory.errors import UserError, quoted
from factory.files import file_name
from factory.plain import say
from factory.recipe import load
from factory.recipe.schema import Recipe
from factory.registry import register
from factory.run.inputs import made_from
from factory.run.labels import labels
from factory.run.methods.choose import oracle
from factory.run.methods.comparison import unsteered
from factory.run.questions.controls import controls

NUMBERS = ("n", "known_n", "metrics", "ci", "parse_failure_rate", "unknown_rate", "guess_share", "empty_share")
CELL = ("split", "task", "direction", "method", "strength")
ANSWERED = ("sample", "method", "direction", "variant", "strength")
SPLITS = ("dev", "test")

Row = Mapping[str, Any]
Found = dict[tuple[Any, ...], Row]


@register("command", "verify")
class Verify(Command):
    """Recompute every number of a run's results.json from its kept answers, by the rules as they are now, and say the
    first that differs (exit code 1). Which rows no kept answer is behind (an oracle's, a harness's) is said.

    Of a document (docs/results.md) the tables of outcomes are recomputed whose runs are here: a table belongs to the
    recipe's command printed above it, and a run to the recipe that it is of.
    """

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", type=Path, metavar="RUN|TABLE", help="a finished run's folder, or a Markdown file")
        parser.add_argument(
            "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="where a table's runs lie"
        )

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        if args.run.suffix.lower() == ".md":
            return _documented(args.run, args.runs)
        results, recipe = opened(args.run)
        found = {**conflict_rows(args.run, recipe, results), **question_rows(args.run, recipe)}
        rows = [(key(row), row) for row in results]
        held = [(name, row) for name, row in rows if name in found]
        lost = sorted({f"{row.get('split')}/{row.get('method')}" for name, row in rows if name not in found})
        if lost:
            say(f"without kept answers: {len(rows) - len(held):,} rows ({', '.join(lost)})")
        differ = [told for name, row in held for told in differences(row, found[name])]
        say(f"{args.run}: {len(held):,} of {len(rows):,} rows recomputed, {len(differ):,} numbers differ")
        if differ:
            say(f"the first: {differ[0]}")
        return 1 if differ or not held else 0


def _documented(document: Path, runs: Path) -> int:
    """Say of each table of outcomes whether its numbers are those of its run; 1 where any differs or none could be."""
    held = 0
    differ: list[str] = []
    for table in tables(document):
        compared, wrong, why = _compared(table, runs)
        held, differ = held + compared, differ + wrong
        told = why or f"{compared:,} numbers recomputed, {len(wrong):,} differ"
        say(f"{table.place} ({table.heading}): {told}")
    if differ:
        say(f"the first: {differ[0]}")
    return 1 if differ or not held else 0


def _compared(table: Table, runs: Path) -> tuple[int, list[str], str]:
    """How many numbers of a table were held against its run's kept answers, those that differ, and why none was."""
    if len(table.commands) != 1:
        return 0, [], f"not recomputed: {len(table.commands)} commands stand above it, one makes a table's run"
    recipe, overrides = _named(table.commands[0])
    run = runs / recipe.name
    if not (run / "results.json").is_file():
        return 0, [], f"not recomputed: no run in {run}; make it: {shlex.join(table.commands[0])}"
    results, own = opened(run)
    if made_from(own) != made_from(recipe):
        return 0, [], f"not recomputed: {run} is of another recipe, or of other code, than {' '.join(overrides)}"
    found = conflict_rows(run, own, results)
    chosen = {(r.get("method"), r.get("direction")): key(r) for r in results if _reported(r)}
    differ: list[str] = []
    compared = 0
    for number in table.numbers:
        row = found.get(chosen.get((number.method, number.direction), ()))
        if row is None or number.metric not in row["metrics"]:
            continue
        compared += 1
        told = (number.value, *(number.interval or ()))
        now = (row["metrics"][number.metric], *(row["ci"][number.metric] if number.interval else ()))
        if any(
            abs(100 * made - value) > 0.5 * 10**-number.decimals + 1e-9 for value, made in zip(told, now, strict=True)
        ):
            made = ", ".join(f"{100 * value:.{number.decimals}f}" for value in now)
            what = f"{number.method} toward {number.direction}, {number.metric}"
            differ.append(f"{number.place}: {what}: {', '.join(map(str, told))} is printed, and {made} recomputed")
    lost = len(table.numbers) + table.unread - compared
    if lost:
        say(f"{table.place}: {lost:,} cells have no kept answers, or are no share")
    return compared, differ, ""


def _named(command: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe that a command runs, and its words from the recipe on."""
    at = next(i for i, word in enumerate(command) if word.endswith(".yaml"))
    overrides = [word for word in command[at + 1 :] if "=" in word]
    return load(command[at], overrides), list(command[at:])


def _reported(row: Row) -> bool:
    return bool(row.get("split") == "test" and row.get("task") == "all" and row.get("chosen"))


def opened(run: Path) -> tuple[list[dict[str, Any]], Recipe]:
    """The rows of a run's results and its recipe. Raises ``UserError`` where the folder holds none."""
    if not (run / "results.json").is_file() or not (run / "resolved.yaml").is_file():
        raise UserError(f"{run}: holds no results.json with resolved.yaml; is it a finished run?")
    rows = read_json(run / "results.json").get("rows")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{run / 'results.json'}: holds no rows")
    return rows, load(run / "resolved.yaml")


def key(row: Row) -> tuple[Any, ...]:
    """What a row is of: its benchmark's label, split, task, direction, method and strength."""
    return (row.get("label") or row.get("benchmark"), *(row.get(name) for name in CELL))


def conflict_rows(run: Path, recipe: Recipe, results: Sequence[Row]) -> Found:
    """The rows of the recipe's data, made of the kept answers of the variants that were chosen."""
    benchmark = recipe.data.make() if recipe.data else None
    if not isinstance(benchmark, Conflicts):
        return {}
    variant = {(row.get("method"), row.get("direction")): row.get("variant") for row in results if "variant" in row}
    found: list[dict[str, Any]] = []
    for split in SPLITS:
        samples = {sample.id: sample for sample in benchmark.samples(split)}
        cells: dict[tuple[Any, ...], Row] = {}  # a share of the test set that grew asks some cells again
        for file in sorted((run / split / "chunks").glob("*.jsonl")):
            cells |= {tuple(p[name] for name in ANSWERED): p for p in read_jsonl(file)}
        for p in cells.values():
            if p["strength"] is not None and variant.get((p["method"], p["direction"])) != p["variant"]:
                continue
            if p["sample"] not in samples:
                raise UserError(f"{run}: no {split} sample {quoted(p['sample'])} any more; were its files changed?")
            answers = zip(benchmark.forms, p["answers"], strict=True)
            verdicts = [benchmark.judge(samples[p["sample"]], form, text) for form, text in answers]
            outcome = benchmark.outcome(verdicts, p["direction"])
            own = {"split": split, "verdicts": verdicts, "outcome": outcome, "chosen": True, "prompt_hash": ""}
            found.append({**p, **own})
    found += [best for split in SPLITS for best in _oracle([p for p in found if p["split"] == split], recipe, results)]
    known = {"known": recipe.evaluate.known} if recipe.evaluate.known else {}
    return {key(row): row for row in benchmark.rows(found, **known)}


def _oracle(found: Sequence[dict[str, Any]], recipe: Recipe, results: Sequence[Row]) -> Sequence[dict[str, Any]]:
    """Each sample's best outcome over the strengths of the reference, where the results have an oracle of it."""
    reference = labels(recipe).reference
    if reference is None or not any(row.get("method") == f"oracle:{reference}" for row in results):
        return []
    return oracle(found, reference, unsteered({node.label: node.make() for node in recipe.steering}))


def question_rows(run: Path, recipe: Recipe) -> Found:
    """The rows of the recipe's question benchmarks; the answers of one that a judge reads count as kept."""
    found: Found = {}
    for node in (*recipe.benchmarks, *controls(recipe).values()):
        made = node.make()
        if isinstance(made, Harness):
            continue
        benchmark: Questions = made.as_questions() if isinstance(made, Conflicts) else made
        items = {item.id: item for item in benchmark.questions()}
        for file in sorted((run / "predictions" / file_name(node.label)).glob("*.jsonl")):
            kept = read_jsonl(file)
            if lost := next((r["sample"] for r in kept if r["sample"] not in items), None):
                raise UserError(f"{file}: no question {quoted(lost)} any more; were its files changed?")
            judged = getattr(benchmark, "judge", None) is not None
            records = kept if judged else [{**r, **benchmark.record(items[r["sample"]], r["text"])} for r in kept]
            facts = {name: kept[0][name] for name in ("method", "direction", "strength") if name in kept[0]}
            rows = benchmark.rows(records if judged else benchmark.settle(records), label=node.label, **facts)
            found |= {key(row): row for row in rows}
    return found


def differences(row: Row, made: Row) -> Iterator[str]:
    """Each number of a row that is another when it is made anew."""
    where = " ".join(str(part) for part in key(row) if part is not None)
    for name in NUMBERS:
        for path, told, now in _apart(name, row.get(name), made.get(name)):
            yield f"{where}: {path} is {told} in results.json and {now} from the kept answers"


def _apart(path: str, told: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(told, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*told, *now)):
            yield from _apart(f"{path}.{name}", told.get(name), now.get(name))
    elif isinstance(told, Sequence) and isinstance(now, Sequence) and len(told) == len(now):
        for i, (one, other) in enumerate(zip(told, now, strict=True)):
            yield from _apart(f"{path}.{i}", one, other)
    elif told != now and not (isinstance(told, float) and isinstance(now, float) and abs(told - now) < 1e-12):
        yield path, told, now
