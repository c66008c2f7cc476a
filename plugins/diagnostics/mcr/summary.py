"""What a run's MCR says: where it lies, how far an instruction shifts it (AMPS, RQ1), and how far it repeats itself
(A.2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.benchmark import Records
from factory.diagnose.profiles import mean_of
from factory.diagnose.summary import Figure, Finding, Predictor, Summary, Table
from factory.statistics.association import bootstrap, interval, spearman

from .figures import by_prompt, by_task

if TYPE_CHECKING:
    import matplotlib.figure

Values = dict[tuple[str, str], float]  # by sample and form
SHIFTS = (("vision", "text", 1), ("vision", "base", 1), ("text", "base", -1))  # and the sign that RQ1 expects
SAID = {"vision": "the vision instruction", "text": "the text instruction", "base": "no instruction"}
PREDICTOR = Predictor("R_V", "MCR of the target", lambda share, to: 1 - share if to == "text" else share)
FEWEST = 3  # samples that a correlation is told of


def again(repeat: int) -> str:
    """The metric of R_V measured once more."""
    return f"R_V_again_{repeat}"


def summary_of(rows: Records) -> Summary | None:
    """R_V by task and by prompt, the paired test of every shift between two prompts, and the test-retest of R_V; None
    without any R_V.
    """
    if not any(row["metric"] == PREDICTOR.metric for row in rows):
        return None
    shifts, retests = list(_shifts(rows)), [_retest(prompt, runs) for prompt, runs in _repeated(rows)]
    columns = ("from", "to", "mean difference of R_V", "low", "high", "p", "samples")
    tables = [Table("shift", "Shift of R_V between prompts, paired by sample", columns, tuple(t for _, t in shifts))]
    figures = [figure for figure in (by_task(rows), by_prompt(rows)) if figure]
    if retests:
        scatter = partial(_scatter, repeated=_repeated(rows))
        figures.append(Figure("retest", "R_V measured twice", _caption(retests), scatter, (5.0, 4.6)))
    return Summary(
        "Modality contribution ratio",
        (*(finding for finding, _ in shifts), *retests),
        tuple(tables if shifts else ()),
        tuple(figures),
        predictors=(PREDICTOR,),
    )


def _measured(rows: Records, metric: str, prompt: str) -> Values:
    return {
        (row["sample"], row["form"]): row["value"]
        for row in rows
        if row["metric"] == metric and row["prompt"] == prompt and isfinite(row["value"])
    }


def _shifts(rows: Records) -> Iterator[tuple[Finding, tuple[Any, ...]]]:
    by_prompt = {prompt: _measured(rows, "R_V", prompt) for prompt in SAID}
    for to, start, sign in SHIFTS:
        keys = [key for key in by_prompt[to] if key in by_prompt[start]]
        if not keys:
            continue
        shift = mean_of([by_prompt[to][key] - by_prompt[start][key] for key in keys], keys)
        low, high = shift.interval
        text = (
            f"R_V is {'higher' if sign > 0 else 'lower'} under {SAID[to]} than under {SAID[start]}: mean difference"
            f" {shift.mean:+.3f} [{low:+.3f}, {high:+.3f}] over {shift.n} samples"
        )
        values = {**shift.facts("difference"), "samples": shift.n}
        holds = low > 0 if sign > 0 else high < 0
        yield Finding(text, holds, values, shift.p), (start, to, shift.mean, low, high, shift.p, shift.n)


def _repeated(rows: Records) -> list[tuple[str, dict[tuple[str, str], list[float]]]]:
    """By prompt, the values of R_V of each sample and form whose every run is finite, first to last."""
    found = []
    for prompt in SAID:
        runs = [_measured(rows, "R_V", prompt)]
        while further := _measured(rows, again(len(runs)), prompt):
            runs.append(further)
        kept = {key: [run[key] for run in runs] for key in runs[0] if all(key in run for run in runs)}
        if len(runs) > 1 and len({sample for sample, _ in kept}) >= FEWEST:
            found.append((prompt, kept))
    return found


def _retest(prompt: str, runs: Mapping[tuple[str, str], Sequence[float]]) -> Finding:
    x, samples = np.array(list(runs.values())), [sample for sample, _ in runs]
    within = float(np.sqrt(x.var(1, ddof=1).mean()))
    values: dict[str, Any] = {"runs": x.shape[1], "samples": len(set(samples)), "within_sample_sd": within}
    said = []
    for name, measure in (("Pearson", _pearson), ("Spearman", spearman)):
        statistic = _mean_of_pairs(x, measure)
        value, ci = statistic(np.arange(len(x))), interval(bootstrap(statistic, samples))
        values |= {name.lower(): value if isfinite(value) else None, f"{name.lower()}_ci": ci and list(ci)}
        shown = f"{value:.3f}" if isfinite(value) else "not defined, because R_V does not vary"
        said.append(f"{name} {shown}" + (f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else ""))
    return Finding(
        f"R_V under {SAID[prompt]}, measured {x.shape[1]} times with other noise on {len(set(samples))} samples:"
        f" {', '.join(said)} between runs; within a sample its standard deviation is {within:.4f}, between samples"
        f" {float(x.mean(1).std(ddof=1)):.4f}",
        values=values,
    )


def _mean_of_pairs(x: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray], float]:
    """The mean of ``measure`` over all pairs of runs, of some rows of x [n, runs]."""
    return lambda rows: fmean(measure(x[rows, i], x[rows, j]) for i, j in combinations(range(x.shape[1]), 2))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else float("nan")


def _caption(retests: Sequence[Finding]) -> str:
    return f"each point is a prompt; on the line both runs agree; {retests[0].values['samples']} samples"


def _scatter(figure: matplotlib.figure.Figure, repeated: Sequence[tuple[str, Mapping[Any, Sequence[float]]]]) -> None:
    ax = figure.subplots()
    for prompt, runs in repeated:
        ax.plot(*zip(*(values[:2] for values in runs.values()), strict=True), ".", alpha=0.6, label=SAID[prompt])
    ax.axline((0.5, 0.5), slope=1, color="#444444", linewidth=1)
    ax.set_xlabel("visual MCR $R_V$, first run")
    ax.set_ylabel("second run")
    ax.legend()
