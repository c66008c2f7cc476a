"""``rules RUN``: the kept answers of a conflict run, scored by every version of the rule, side by side."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval_suite.commands import Command
from eval_suite.conflict import ConflictBenchmark
from eval_suite.released import read_jsonl
from eval_suite.report.rows import percent, strength_text
from eval_suite.scorers.conflict import RULES, agree, called, outcome
from factory.errors import UserError
from factory.recipe import load
from factory.registry import register

EXAMPLES = 3
Scored = list[tuple[Mapping[str, Any], dict[str, list[str]]]]
"""Predictions, each with its verdicts by rule."""


@register("command", "rules")
class Rules(Command):
    """Score the kept answers of a conflict run by every version of the rule, side by side."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "run", type=Path, metavar="RUN", help="the folder of a finished run on a conflict benchmark"
        )
        parser.add_argument("--split", choices=("dev", "test"), default="test", help="default: test")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        benchmark, predictions = opened(args.run, args.split)
        scored = rescored(benchmark, args.split, predictions)
        print(f"{by_cell(scored)}\n{changes(scored)}", end="")


def opened(run: Path, split: str) -> tuple[ConflictBenchmark, list[dict[str, Any]]]:
    """The benchmark of a run and its predictions of a split at every strength. Raises ``UserError`` where the folder
    holds none.
    """
    files = sorted((run / split / "chunks").glob("*.jsonl"))
    if not (run / "resolved.yaml").is_file() or not files:
        raise UserError(f"{run}: holds no resolved.yaml with answers in {split}/chunks; is it a finished run?")
    recipe = load(run / "resolved.yaml")
    benchmark = recipe.data.make() if recipe.data else None
    if not isinstance(benchmark, ConflictBenchmark):
        raise UserError(f"{run}: its data is no conflict between two sources")
    rows = [row for file in files for row in read_jsonl(file)]
    cell = ("sample", "method", "direction", "variant", "strength")
    return benchmark, list({tuple(row[key] for key in cell): row for row in rows}.values())


def rescored(benchmark: ConflictBenchmark, split: str, predictions: Iterable[Mapping[str, Any]]) -> Scored:
    """The verdicts of every rule on the answers of each prediction. Raises ``UserError`` for an unknown sample."""
    samples = {sample.id: sample for sample in benchmark.samples(split)}
    scored = []
    for p in predictions:
        if p["sample"] not in samples:
            raise UserError(f"{benchmark.name}: has no {split} sample {p['sample']} any more; were its files changed?")
        pair = samples[p["sample"]].answer_vision, samples[p["sample"]].answer_text
        answers = list(zip(benchmark.forms, p["answers"], strict=True))
        named = lambda verdict: called(verdict, benchmark.sources.names)
        scored.append((p, {name: [named(rule(form, a, *pair)) for form, a in answers] for name, rule in RULES.items()}))
    return scored


def by_cell(scored: Scored) -> str:
    """A Markdown table: a line per direction, method and strength, and the shares by each rule in percent."""
    cells: dict[tuple, list[dict[str, str]]] = defaultdict(list)
    for p, verdicts in scored:
        found = {name: outcome(agree(each), p["direction"]) for name, each in verdicts.items()}
        cells[p["direction"], p["method"], p["strength"]].append(found)
    rules = sorted(RULES)
    heads = [f"{what}, {rule}" for what in ("follow", "error", "other") for rule in rules] + [f"flags, {rules[-1]}"]
    lines = [_line("towards", "method", "strength", "n", *heads), "|:---|:---|" + "---:|" * (len(heads) + 2)]
    for (direction, method, strength), members in cells.items():
        shares = [
            percent(sum(each[rule] == what for each in members) / len(members))
            for what, rule in [*((w, r) for w in ("follow", "error", "other") for r in rules), ("flags", rules[-1])]
        ]
        lines.append(_line(direction, method, strength_text(strength), str(len(members)), *shares))
    return "\n".join(lines) + "\n"


def changes(scored: Scored) -> str:
    """A Markdown table: which verdicts on single answers the newest rule changed, how often, with answers."""
    old, new = sorted(RULES)[-2:]
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    total = 0
    for p, verdicts in scored:
        for answer, before, after in zip(p["answers"], verdicts[old], verdicts[new], strict=True):
            total += 1
            if before != ("other" if after == "unknown" else after):
                counts[before, after] += 1
                examples[before, after][answer] += 1
    lines = [f"{sum(counts.values()):,} of {total:,} answers are read otherwise:", ""]
    lines += [_line(old, new, "answers", "most frequent"), "|:---|:---|---:|:---|"]
    for (before, after), n in counts.most_common():
        shown = [f"{_quoted(answer)} ({k})" for answer, k in examples[before, after].most_common(EXAMPLES)]
        lines.append(_line(before, after, f"{n:,}", ", ".join(shown)))
    return "\n".join(lines) + "\n"


def _quoted(answer: str) -> str:
    """An answer as code in a cell of a table: on one line, without what would end the cell."""
    return f"``{json.dumps(answer, ensure_ascii=False)[1:-1]}``".replace("|", "\\|")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
