"""The report of a run: tables for the terminal and for papers, figures, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval_suite.report.findings import print_findings
from eval_suite.report.published import print_published
from eval_suite.report.samples.collection import Collection
from eval_suite.report.tables import main_tables, print_tables
from factory import files
from factory.diagnose.summary import Summary

__all__ = ["build", "print_findings", "print_published", "print_tables"]


def build(
    run_dir: Path,
    results: Mapping,
    diagnostics: Sequence[Mapping],
    predictions: Sequence[Mapping],
    recipe_yaml: str,
    pictures: Sequence[tuple[str, Path]] = (),
    plots: bool = True,
    summaries: Sequence[Summary] = (),
    collections: Sequence[Collection] = (),
    limit: int | None = None,
) -> Path:
    """Write `run_dir/report/` (index.html, samples.html with samples/, table.{csv,md,tex}, outcomes.csv, turned.csv,
    controls.csv, closed.csv, figures/*.{png,svg,pdf}); return index.html's path.

    `results` is the content of results.json, `diagnostics` the tidy diagnostic rows, `predictions` one record per
    sample, method, direction and strength, `pictures` titled image files to show, `summaries` what diagnostics say
    themselves (a section each, their tables as CSV files, and the predictors that are held against the outcomes),
    `collections` the single samples, and `limit` how many of a split the run was held to; without `plots` no figure is
    drawn.
    What was not measured is left out, and the page says so.
    """
    # Imported here so that printing a table does not load matplotlib.
    from eval_suite.report import closed, controls, header, html, initial, outcomes, table_files
    from eval_suite.report import findings as own
    from eval_suite.report.plots import draw_all
    from eval_suite.report.rows import Predictions
    from eval_suite.report.samples import write as samples
    from eval_suite.report.sections import error_budget

    folder = Path(run_dir) / "report"
    files.make_folder(folder / "figures")
    budget = error_budget(results, recipe_yaml)
    records = Predictions(predictions)
    undrawn = "Figures: the recipe says report.plots: false."
    offered = [predictor for summary in summaries for predictor in summary.predictors]
    figures, missing = draw_all(results, diagnostics, records, budget, offered) if plots else ([], [undrawn])
    for stale in (path for suffix in ("png", "svg", "pdf") for path in (folder / "figures").glob(f"*.{suffix}")):
        with files.explained(stale, "remove"):
            stale.unlink()
    diagnosed = own.sections(summaries, plots)
    for figure in (*figures, *(figure for section in diagnosed for figure in section.figures)):
        for suffix, content in figure.files.items():
            files.write_bytes(folder / "figures" / f"{files.file_name(figure.name)}.{suffix}", content)
    blocks = main_tables(results)
    files.write_text(folder / "table.csv", table_files.to_csv(blocks))
    files.write_text(folder / "table.md", table_files.to_markdown(blocks))
    files.write_text(folder / "outcomes.csv", outcomes.to_csv(results))
    files.write_text(folder / "table.tex", table_files.to_latex(blocks, closed.blocks(results, records)))
    if (counts := initial.to_csv(results, records)) is not None:
        files.write_text(folder / "turned.csv", counts)
    if (beside := controls.to_csv(results)) is not None:
        files.write_text(folder / "controls.csv", beside)
    if (shares := closed.to_csv(results, records)) is not None:
        files.write_text(folder / "closed.csv", shares)
    index = folder / "index.html"
    own.write_tables(summaries, folder)
    name, byline = header.title(results), header.byline(Path(run_dir), results, limit)
    sampled = samples.write(collections, folder, name, byline) is not None
    page = html.page(
        name, results, figures, missing, records, recipe_yaml, budget, pictures, diagnosed, byline, sampled
    )
    files.write_text(index, page)
    return index
