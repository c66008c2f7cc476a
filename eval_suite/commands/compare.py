"""``compare RUN RUN…``: finished runs in one table with paired tests, written as CSV, Markdown, LaTeX and figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval_suite.commands import Command
from eval_suite.compare import over_seeds
from eval_suite.compare import table as tables
from eval_suite.compare.load import load
from eval_suite.compare.pooled import pooled
from eval_suite.compare.samples import align, of_tasks
from eval_suite.compare.write import show, write
from factory.registry import register
from factory.terminal import Console


@dataclass(frozen=True)
class Asked:
    """How runs are compared: ``common`` as in ``samples.align``, ``pool`` them as in ``pooled``, ``tasks`` as in
    ``samples.of_tasks``, ``against`` and ``between`` as in ``table.build``.
    """

    common: bool = False
    pool: bool = False
    tasks: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    between: tables.Between | None = None


ASKED = Asked()


@register("command", "compare")
class Compare(Command):
    """Compare finished runs: scores with intervals, paired tests, ranks and costs in one table."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a finished run")
        parser.add_argument(
            "--out", type=Path, default=Path("runs", "compare"), metavar="FOLDER", help="default: runs/compare"
        )
        parser.add_argument(
            "--against",
            action="append",
            default=[],
            metavar="METHOD",
            help="test every method against this one of the same run too, and print the paired differences",
        )
        parser.add_argument(
            "--task",
            action="append",
            default=[],
            metavar="TASK",
            help="score the samples of this task alone; given again, of several together",
        )
        parser.add_argument(
            "--pool",
            action="store_true",
            help="runs on other draws of the data as one, toward each direction and toward either",
        )
        parser.add_argument(
            "--between",
            nargs=2,
            metavar=("FROM", "TO"),
            help="what every method closes of the distance from one method to another (`oracle` is a run's oracle)",
        )
        parser.add_argument(
            "--common",
            action="store_true",
            help="where runs answered different samples, score those that all of them answered",
        )

    @classmethod
    def run(cls, args: argparse.Namespace) -> None:
        between = tuple(args.between) if args.between else None
        cls.over(args.runs, args.out, Asked(args.common, args.pool, tuple(args.task), tuple(args.against), between))

    @staticmethod
    def over(runs: Sequence[Path], out: Path, asked: Asked = ASKED, plots: bool = True) -> Path:
        """Compare ``runs``, print the table and write it under ``out``; returns ``out``. Without ``plots`` no figure is
        drawn.
        """
        arms = load(runs)
        notes = of_tasks(arms, asked.tasks) if asked.tasks else []
        if asked.pool:
            arms, told = pooled(arms)
            notes += told
        table = tables.build(arms, [*notes, *align(arms, asked.common)], asked.against, asked.between)
        write(table, out, plots)
        show(table, Console())
        kinds = ".csv, .tex, figures/" if plots else ".csv, .tex"
        Console().print(f"comparison: {out / 'compare.md'} (also {kinds})", soft_wrap=True)
        if found := over_seeds.numbers(runs):
            Console().print(f"diagnostics over seeds: {over_seeds.write(found, out)} (also .csv)", soft_wrap=True)
        return out
