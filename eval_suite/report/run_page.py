"""The report that every run has: the page and its tables and figures, and for questions the comparison of the arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_suite.report import build, closed, print_findings, print_published, print_tables
from eval_suite.report.explain import explain
from eval_suite.report.rows import Predictions, labels
from eval_suite.report.samples.gather import collections, kept
from factory import files
from factory.benchmark import Conflicts
from factory.diagnose.summary import Summary
from factory.registry import register
from factory.report import Finished, Report, WithSummary
from factory.run.samples import texts_of
from factory.terminal import Console


@register("report", "run_page")
class RunPage(Report):
    """One page with tables and figures; the main table is printed. Of methods on conflicts the predictions are kept, of
    questions the arms are compared with paired tests."""

    def write(self, run: Finished) -> Path:
        of_conflicts, console = isinstance(run.benchmark, Conflicts), Console()
        offered = [predictor for summary in run.summaries for predictor in summary.predictors]
        explained = explain(run.diagnostics, run.predictions, labels(run.results)[0], offered)
        summaries = [*run.summaries, *of_questions(run), *explained]
        pictures = run.benchmark.pictures(run.folder / "report" / "pictures")
        keep(run)
        page = build(
            run.folder,
            run.results,
            run.diagnostics,
            run.predictions,
            run.recipe,
            pictures,
            run.plots,
            summaries,
            collections(run),
            run.limit,
        )
        print_tables(run.results, console)
        if of_conflicts:
            closed.show(run.results, Predictions(run.predictions), console)
            print_published(run.results, console)
        for warning in run.benchmark.warnings:
            console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
        print_findings(summaries, console)
        if not of_conflicts:
            self.beside([run.folder], run.folder / "comparison", run.plots)
        return page

    def beside(self, runs: Sequence[Path], out: Path, plots: bool = True) -> Path:
        from eval_suite.commands.compare import Compare  # here, so that printing a table does not load matplotlib

        return Compare.over(runs, out, plots=plots)


def of_questions(run: Finished) -> list[Summary]:
    """What question benchmarks say of their answers by themselves."""
    unsteered = labels(run.results)[0]
    asked = {label: benchmark for label, (benchmark, _) in run.asked.items() if isinstance(benchmark, WithSummary)}
    found = ((benchmark, kept(run, label, unsteered)) for label, benchmark in asked.items())
    return [benchmark.summary(records, unsteered) for benchmark, records in found if records]


def keep(run: Finished) -> None:
    """Write the test predictions at the reported strengths, one file per method and direction, each with its sample's
    texts and the prompts as the model read them (``asked``; a method that leaves the prompt alone shares another's).
    """
    b, seed, cells = run.benchmark, run.results["run"]["seed"], dict[str, list[dict[str, Any]]]()
    about = {"benchmark": b.name, "label": b.name, "protocol": b.protocol, "seed": seed}
    texts = {s.id: texts_of(s) for s in run.samples}
    asked = {d: text for p in run.predictions for d, text in zip(p["prompts"], p.get("asked", ()), strict=False)}
    for p in run.predictions:
        if p["split"] == "test" and p["chosen"]:
            scored = {"value": float(p["outcome"] == "follow"), "failed": "error" in p["verdicts"]}
            record = {**about, **p, "item": run.items[p["sample"]], "tasks": [p["task"]], **scored}
            record |= {**texts.get(p["sample"], {}), "asked": [asked.get(digest) for digest in p["prompts"]]}
            cells.setdefault(files.file_name(f"{p['method']}-{p['direction']}"), []).append(record)
    for name, records in cells.items():
        files.write_jsonl(run.folder / "predictions" / b.name / f"{name}.jsonl", records)
