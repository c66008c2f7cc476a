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
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.diagnose.profiles import mean_of
from factory.diagnose.summary import Figure, Finding, Predictor, Summary, Table
from factory.plain import number_of
from factory.statistics.association import bootstrap, interval, spearman
from factory.steer.collect import BASE

from .figures import by_prompt, by_task

if TYPE_CHECKING:
    import matplotlib.figure

Values = dict[tuple[str, str], float]  # by sample and form
FEWEST = 3  # samples that a correlation is told of


def share_of_first(sources: Sources) -> str:
    """The metric that is the first source's share: R_V, or R_A of two texts."""
    return f"R_{sources.first.letter}"


def again(repeat: int, sources: Sources = PICTURE_AND_TEXT) -> str:
    """The metric of R_V measured once more."""
    return f"{share_of_first(sources)}_again_{repeat}"


def predictor(sources: Sources) -> Predictor:
    """The share of the source that is steered to."""
    toward = lambda share, to: 1 - share if to == sources.second.name else share
    return Predictor(share_of_first(sources), "MCR of the target", toward)


PREDICTOR = predictor(PICTURE_AND_TEXT)


def asks(sources: Sources) -> dict[str, str]:
    """What is said of each prompt that may be measured, by what rows call it."""
    return {name: f"the {name} instruction" for name in sources.names} | {BASE: "no instruction"}


def summary_of(rows: Records, sources: Sources = PICTURE_AND_TEXT) -> Summary | None:
    """R_V by task and by prompt, the paired test of every shift between two prompts, and the test-retest of R_V; None
    without any R_V. Between two texts R_A stands in its place, and no figures are drawn.
    """
    R = share_of_first(sources)
    if not any(row["metric"] == R for row in rows):
        return None
    repeated = _repeated(rows, sources)
    shifts, retests = list(_shifts(rows, sources)), [_retest(prompt, runs, sources) for prompt, runs in repeated]
    columns = ("from", "to", f"mean difference of {R}", "low", "high", "p", "samples")
    tables = [Table("shift", f"Shift of {R} between prompts, paired by sample", columns, tuple(t for _, t in shifts))]
    figures = [figure for figure in (by_task(rows), by_prompt(rows)) if figure]
    if retests and sources.pictured:
        scatter = partial(_scatter, repeated=repeated, said=asks(sources))
        figures.append(Figure("retest", "R_V measured twice", _caption(retests), scatter, (5.0, 4.6)))
    return Summary(
        "Modality contribution ratio",
        (*(finding for finding, _ in shifts), *retests),
        tuple(tables if shifts else ()),
        tuple(figures),
        predictors=(predictor(sources),),
    )


def _measured(rows: Records, metric: str, prompt: str) -> Values:
    return {
        (row["sample"], row["form"]): row["value"]
        for row in rows
        if row["metric"] == metric and row["prompt"] == prompt and isfinite(row["value"])
    }


def _shifts(rows: Records, sources: Sources) -> Iterator[tuple[Finding, tuple[Any, ...]]]:
    """Each shift that RQ1 expects, with its sign: up toward the first source, down toward the second."""
    R, said, (first, second) = share_of_first(sources), asks(sources), sources.names
    by_prompt = {prompt: _measured(rows, R, prompt) for prompt in said}
    for to, start, sign in ((first, second, 1), (first, BASE, 1), (second, BASE, -1)):
        keys = [key for key in by_prompt[to] if key in by_prompt[start]]
        if not keys:
            continue
        shift = mean_of([by_prompt[to][key] - by_prompt[start][key] for key in keys], keys)
        low, high = shift.interval
        text = (
            f"{R} is {'higher' if sign > 0 else 'lower'} under {said[to]} than under {said[start]}: mean difference"
            f" {shift.mean:+.3f} [{low:+.3f}, {high:+.3f}] over {number_of(shift.n, 'sample')}"
        )
        values = {**shift.facts("difference"), "samples": shift.n}
        holds = low > 0 if sign > 0 else high < 0
        yield Finding(text, holds, values, shift.p), (start, to, shift.mean, low, high, shift.p, shift.n)


def _repeated(rows: Records, sources: Sources) -> list[tuple[str, dict[tuple[str, str], list[float]]]]:
    """By prompt, the values of R_V of each sample and form whose every run is finite, first to last."""
    found = []
    for prompt in asks(sources):
        runs = [_measured(rows, share_of_first(sources), prompt)]
        while further := _measured(rows, again(len(runs), sources), prompt):
            runs.append(further)
        kept = {key: [run[key] for run in runs] for key in runs[0] if all(key in run for run in runs)}
        if len(runs) > 1 and len({sample for sample, _ in kept}) >= FEWEST:
            found.append((prompt, kept))
    return found


def _retest(prompt: str, runs: Mapping[tuple[str, str], Sequence[float]], sources: Sources) -> Finding:
    x, samples = np.array(list(runs.values())), [sample for sample, _ in runs]
    R, within = share_of_first(sources), float(np.sqrt(x.var(1, ddof=1).mean()))
    values: dict[str, Any] = {"runs": x.shape[1], "samples": len(set(samples)), "within_sample_sd": within}
    said = []
    for name, measure in (("Pearson", _pearson), ("Spearman", spearman)):
        statistic = _mean_of_pairs(x, measure)
        value, ci = statistic(np.arange(len(x))), interval(bootstrap(statistic, samples))
        values |= {name.lower(): value if isfinite(value) else None, f"{name.lower()}_ci": ci and list(ci)}
        shown = f"{value:.3f}" if isfinite(value) else f"not defined, because {R} does not vary"
        said.append(f"{name} {shown}" + (f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else ""))
    return Finding(
        f"{R} under {asks(sources)[prompt]}, measured {x.shape[1]} times with other noise on {len(set(samples))}"
        " samples:"
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


def _scatter(
    figure: matplotlib.figure.Figure,
    repeated: Sequence[tuple[str, Mapping[Any, Sequence[float]]]],
    said: Mapping[str, str],
) -> None:
    ax = figure.subplots()
    for prompt, runs in repeated:
        ax.plot(*zip(*(values[:2] for values in runs.values()), strict=True), ".", alpha=0.6, label=said[prompt])
    ax.axline((0.5, 0.5), slope=1, color="#444444", linewidth=1)
    ax.set_xlabel("visual MCR $R_V$, first run")
    ax.set_ylabel("second run")
    ax.legend()
