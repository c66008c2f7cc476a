"""The numbers of diagnostics over the seeds of one recipe: their mean with an interval over seeds, and the range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any, NamedTuple

from eval_suite.compare import read
from factory import files
from factory.plain import csv_text

FEWEST = 3
"""Seeds that an interval is told from."""
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
"""Student's t that 97.5 % lie below, of 1, 2, … degrees of freedom."""
COLUMNS = ("diagnostic", "number", "mean", "low", "high", "least", "most", "seeds")


class Number(NamedTuple):
    """One number of a diagnostic over ``n`` seeds; ``low`` and ``high`` bound its mean with 95 % confidence (Student's
    t), None of fewer than three seeds."""

    diagnostic: str
    name: str
    mean: float
    low: float | None
    high: float | None
    least: float
    most: float
    n: int


def numbers(runs: Sequence[Path]) -> list[Number]:
    """Every number that the findings of ``runs``, one a seed, have in common. Nothing where they are not the runs of
    several seeds of one recipe.
    """
    about = [read.results(folder).run.made_from for folder in runs]
    if len(runs) < 2 or len(set(about)) > 1 or about[0] is None:
        return []
    each = [_of(folder) for folder in runs]
    shared = [key for key in each[0] if all(key in other for other in each[1:])]
    return [over(*key, [found[key] for found in each]) for key in shared]


def over(diagnostic: str, name: str, values: Sequence[float]) -> Number:
    """One number from its ``values``, one a seed."""
    n, mean = len(values), fmean(values)
    half = t_975(n - 1) * stdev(values) / math.sqrt(n) if n >= FEWEST else None
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Number(diagnostic, name, mean, low, high, min(values), max(values), n)


def t_975(freedom: int) -> float:
    """Student's t that 97.5 % lie below: tabled, and beyond the table Fisher's expansion about the normal's z."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def write(found: Sequence[Number], folder: Path) -> Path:
    """seeds.csv and seeds.md in ``folder``; returns the path of the latter."""
    rows = [[*n[:2], *(None if v is None else f"{v:.4f}" for v in n[2:7]), n.n] for n in found]
    files.write_text(folder / "seeds.csv", csv_text([COLUMNS, *rows]))
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in lines)
    head = "Numbers of the diagnostics over seeds: mean, its 95 % interval over seeds (Student's t), and the range.\n\n"
    files.write_text(folder / "seeds.md", f"{head}{text}\n")
    return folder / "seeds.md"


def _of(folder: Path) -> dict[tuple[str, str], float]:
    summaries: Mapping[str, Any] = files.read_json(folder / "results.json").get("diagnostics", {})
    return {
        (label, f"{i}: {name}" if len(summary["findings"]) > 1 else name): float(value)
        for label, summary in summaries.items()
        for i, finding in enumerate(summary["findings"])
        for name, value in finding["values"].items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
