"""The report of a run: tables for the terminal and for papers, figures, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval_suite.report.diagnostics import print_findings
from eval_suite.report.published import print_published
from eval_suite.report.tables import main_tables, print_tables
from factory.diagnose.summary import Summary
from factory.files import file_name

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
) -> Path:
    """Write `run_dir/report/` (index.html, table.{csv,md,tex}, outcomes.csv, figures/*.png); return index.html's path.

    `results` is the content of results.json, `diagnostics` the tidy diagnostic rows, `predictions` one record per
    sample, method, direction and strength, `pictures` titled image files to show, `summaries` what diagnostics say
    themselves (a section each, and their tables as CSV files); without `plots` no figure is drawn.
    What was not measured is left out, and the page says so.
    """
    # Imported here so that printing a table does not load matplotlib.
    from eval_suite.report import diagnostics as own
    from eval_suite.report import html, outcomes, table_files
    from eval_suite.report.plots import draw_all
    from eval_suite.report.rows import Predictions
    from eval_suite.report.sections import error_budget

    folder = Path(run_dir) / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    budget = error_budget(results, recipe_yaml)
    records = Predictions(predictions)
    undrawn = "Figures: the recipe says report.plots: false."
    figures, missing = draw_all(results, diagnostics, records, budget) if plots else ([], [undrawn])
    for stale in (folder / "figures").glob("*.png"):
        stale.unlink()
    diagnosed = own.sections(summaries, plots)
    for figure in (*figures, *(figure for section in diagnosed for figure in section.figures)):
        (folder / "figures" / f"{file_name(figure.name)}.png").write_bytes(figure.png)
    blocks = main_tables(results)
    (folder / "table.csv").write_text(table_files.to_csv(blocks), encoding="utf-8")
    (folder / "table.md").write_text(table_files.to_markdown(blocks), encoding="utf-8")
    (folder / "outcomes.csv").write_text(outcomes.to_csv(results), encoding="utf-8")
    (folder / "table.tex").write_text(table_files.to_latex(blocks), encoding="utf-8")
    index = folder / "index.html"
    own.write_tables(summaries, folder)
    page = html.page(results, figures, missing, records, recipe_yaml, budget, pictures, diagnosed)
    index.write_text(page, encoding="utf-8")
    return index
