"""The tables of a comparison's plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta

from rich import box
from rich.table import Table

from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.run.plan.estimate import Estimate
from factory.run.plan.work import Expected


def methods_table(found: Estimate) -> Table:
    table = Table("method", "acts on", "variants", "fitted parameters of each", title="methods", title_justify="left")
    for m in (m for m in found.methods if m.type):
        name = m.label if m.label == m.type else f"{m.label} ({m.type})"
        parameters = "none" if not m.steers else "unknown" if m.parameters is None else f"{m.parameters:,}"
        table.add_row(name, m.place, str(m.variants) if m.steers else "", parameters)
    return table


def stages_table(
    recipe: Recipe, found: Estimate, listed: Sequence[Expected], seconds: Mapping[str, float], total: float
) -> Table:
    """The ``listed`` stages, with what was computed or measured of their ``seconds``, and of all in ``total``."""
    e = recipe.evaluate
    directions, strengths = f"{len(e.directions)} direction(s)", f"{len(e.strengths)} strengths"
    columns = ("stage", "prompts", "prompt passes", "above the site", "new tokens", "also", "time")
    table = Table(
        title=f"stages; {directions}, {strengths}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_footer=True,
    )
    for column in columns:
        table.add_column(
            column,
            overflow="fold",
            justify="left" if column in ("stage", "also") else "right",
            no_wrap=column in ("stage", "time"),
        )
    for s in listed:
        also = (
            f"{s.diagnosed:,} {given(recipe.diagnostic).type}"
            if s.diagnosed
            else f"{s.fits} fits"
            if s.fits
            else f"{s.looks:,.0f} looks ahead"
            if s.looks
            else f"{s.asked:,} questions"
            if s.asked
            else ""
        )
        counts = (s.prompts, s.passes, s.share * (s.cells + s.looks), s.tokens)
        table.add_row(s.name, *(f"{n:,.0f}" if n else "" for n in counts), also, clock_time(seconds[s.name]))
    table.columns[0].footer, table.columns[2].footer, table.columns[-1].footer = (
        "all",
        f"{found.passes:,.0f}",
        clock_time(total),
    )
    return table


def clock_time(seconds: float) -> str:
    """Seconds as a plan says them."""
    if math.isnan(seconds):
        return "unknown"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
