"""The contract of a report: what is written and said of a run that has all its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from factory.benchmark import Benchmark, Item, Questions, Record, Rows
from factory.blame import wrong
from factory.data.sample import ConflictSample
from factory.diagnose.summary import Summary
from factory.recipe.nodes import Node
from factory.registry import Plugin, lookup

if TYPE_CHECKING:  # its library takes seconds to import, and most reports follow no training
    from transformers import TrainerCallback

Questioned = Mapping[str, tuple[Questions, Sequence[Item]]]
"""Benchmarks of questions by label, each with what was asked."""


@runtime_checkable
class WithSummary(Protocol):
    """A benchmark of questions with a section of its own in the report."""

    def summary(self, records: Sequence[Record], unsteered: str) -> Summary:
        """What it says of its records, those of all arms together; ``unsteered`` is the method that is the model as it
        is."""
        ...


@dataclass(frozen=True)
class Finished:
    """A run that has all its numbers, those of ``results`` (results.json), in its ``folder``.

    ``benchmark`` hands in pictures and warnings; ``summaries`` are what diagnostics and other measurements say by
    themselves. A comparison of methods on conflicts has ``predictions`` too, one record a sample, method, direction and
    strength, its test ``samples``, the digests of the ``items`` of all splits by sample, and tidy rows of
    ``diagnostics``. ``asked`` are the benchmarks of questions by label, ``limit`` the most samples of a split. Without
    ``plots`` no figure is drawn.
    """

    folder: Path
    results: Mapping[str, Any]
    benchmark: Benchmark
    plots: bool = True
    summaries: Sequence[Summary] = ()
    diagnostics: Rows = field(default_factory=list)
    predictions: Rows = field(default_factory=list)
    items: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[ConflictSample] = ()
    asked: Questioned = field(default_factory=dict)
    limit: int | None = None

    @property
    def recipe(self) -> str:
        """The text of the recipe, with every default filled in."""
        return (self.folder / "resolved.yaml").read_text(encoding="utf-8")


class Report(Plugin):
    """Base of the reports. A subclass defines ``write``, ``beside`` where it can show several runs, and ``follow``
    where it shows a training as it goes.
    """

    def unready(self) -> str | None:
        """Why it cannot be written here, as where a library is lacking; asked before a run does anything."""
        return None

    def follow(self, folder: Path, name: str) -> TrainerCallback | None:
        """What is told of each step of a training, the stage ``name`` in its ``folder``; None where it shows none."""
        return None

    def write(self, run: Finished) -> Path:
        """Write about a run, below its folder's ``report/``, and print what a person should see at once; returns the
        file to open.
        """
        raise TypeError(f"{type(self).__name__} must define write(run)")

    def beside(self, runs: Sequence[Path], out: Path, plots: bool = True) -> Path:
        """Write about finished runs, by their folders, side by side, into the folder ``out``, and print what should be
        seen; returns ``out``. Without ``plots`` no figure is drawn.
        """
        raise TypeError(f"{type(self).__name__} must define beside(runs, out, plots)")


def page() -> Report:
    """The report that every run has."""
    cls: type[Report] = lookup("report", "run_page")
    return cls(cls.Params())


def write(run: Finished, also: Sequence[Node] = ()) -> Path:
    """Have the page written about a run, and what its recipe wants ``also``; returns the page's path."""
    path = page().write(run)
    for node in also:
        node.make().write(run)
    return path


def check_reports(also: Sequence[Node]) -> None:
    """Raises ``UserError``, with the place of its key, for a report that cannot be written here."""
    for node in also:
        if (why := node.make().unready()) is not None:
            raise wrong(node, "type", why)


def followers(also: Sequence[Node], stage: Path) -> list[TrainerCallback]:
    """What is told of each step of the training whose stage lies in the folder ``stage``."""
    name = "-".join(stage.absolute().parts[-2:])
    return [each for node in also if (each := node.make().follow(stage, name)) is not None]
