"""The report page: one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval_suite.report import closed, outcomes, sections
from eval_suite.report.findings import Section
from eval_suite.report.published import beside
from eval_suite.report.rows import DASH, TOTAL, Predictions
from eval_suite.report.style import Figure
from eval_suite.report.tables import METRIC_HEADINGS, main_tables, metric_lines, other_rows
from eval_suite.report.template import render
from eval_suite.report.verdict import comparisons, summarise
from factory.data.pictures import load

_WIDEST = 1800  # pixels; a larger picture only makes the page heavy


def page(
    name: str,
    results: Mapping,
    figures: Sequence[Figure],
    missing: Sequence[str],
    predictions: Predictions,
    recipe_yaml: str,
    budget: float | None,
    pictures: Sequence[tuple[str, Path]] = (),
    diagnosed: Sequence[Section] = (),
    byline: Sequence[tuple[str, str]] = (),
    sampled: bool = False,
) -> str:
    """The whole page as text; with ``sampled`` it links to the page of samples."""
    compared, not_compared = comparisons(results, predictions)
    named, counted = sections.skipped_samples(results)
    shown, unreadable = _pictures(pictures)
    others = other_rows(results)
    text = render(
        "page.html.j2",
        name=name,
        byline=byline,
        sampled=sampled,
        budget=budget,
        summary=summarise(results, compared, budget),
        blocks=main_tables(results),
        outcomes=outcomes.blocks(results),
        published=beside(results),
        comparisons=sections.comparison_lines(compared),
        references=sorted({c.reference for c in compared}),
        closed=closed.blocks(results, predictions),
        dash=DASH,
        strengths=sections.strength_lines(results, budget),
        protocols=sections.protocol_lines(results),
        others=metric_lines(others),
        wholes=metric_lines([row for row in others if row.get("task", TOTAL) == TOTAL]),
        parts=metric_lines([row for row in others if row.get("task", TOTAL) != TOTAL]),
        other_headings=METRIC_HEADINGS,
        figures=[(figure, _data(figure.svg, "image/svg+xml")) for figure in figures],
        pictures=shown,
        diagnosed=[(section, [(f, _data(f.svg, "image/svg+xml")) for f in section.figures]) for section in diagnosed],
        missing=[*missing, *not_compared, *unreadable],
        skipped=named,
        skipped_count=counted,
        environment=sections.environment(results),
        notes=sections.notes(results),
        recipe=recipe_yaml,
    )
    return text.replace("CONTENTS", _contents(text), 1).lstrip()


def _contents(text: str) -> str:
    """A link to each heading of a page; the headings are escaped already."""
    found = re.findall(r'<h2 id="([\w-]+)">(.*?)</h2>', text)
    return "".join(f'<li><a href="#{anchor}">{title}</a></li>\n' for anchor, title in found)


def _data(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _pictures(pictures: Sequence[tuple[str, Path]]) -> tuple[list[tuple[str, str]], list[str]]:
    shown, unreadable = [], []
    for title, path in pictures:
        try:
            image = load(Path(path))
            image.thumbnail((_WIDEST, _WIDEST * 4))
            out = io.BytesIO()
            image.save(out, format="PNG", optimize=True)
        except OSError:
            unreadable.append(f"Picture {title}: {Path(path).name} cannot be read.")
            continue
        shown.append((title, _data(out.getvalue(), "image/png")))
    return shown, unreadable
