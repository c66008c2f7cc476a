"""Does the law explain the steering? How well relative uncertainty, the MCR and confidence tell which samples flip and which break.

Test samples, all strengths of a swept method in one direction. A sample that the unsteered model does not answer the wanted way
flips at the least strength that makes it follow; one that it answers without error breaks at the least strength that ends in an
error. For each predictor: its rank correlation with that strength (never: above all others) and the AUROC with which it tells
samples that do so at any strength from those that never do. Below 0.5 a low value means yes. Intervals are 95 % bootstrap intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from eval_suite.report.rows import TARGETS, UNSTEERED, is_oracle
from factory.diagnose.summary import Finding, Summary, Table
from factory.statistics.association import auroc, bootstrap, interval, spearman

DRAWS = 300
FEWEST = 5  # samples that do, and samples that do not, below which nothing is said
EVENTS = {"flips": ("compete", "other", "error"), "breaks": ("follow", "compete", "other")}
MEANT = {"flips": "follow", "breaks": "error"}
COLUMNS = ("toward", "method", "event", "predictor", "n", "events", "rank correlation", "low", "high", "AUROC", "low ", "high ")


def explain(diagnostics: Sequence[Mapping], predictions: Sequence[Mapping]) -> list[Summary]:
    """One summary where both a predictor and a swept method were measured on test samples, else none."""
    known = predictors(diagnostics)
    rows, best = [], defaultdict(list)
    for direction, method, runs in _swept(predictions):
        base = {p["sample"]: p["outcome"] for p in predictions if p["method"] == UNSTEERED and p["direction"] == direction and p["split"] == "test"}
        for event in EVENTS:
            at = first_strengths(runs, base, event)
            for name, values in known.items():
                toward = {s: _toward(name, v, direction) for s, v in values.items() if s in at}
                if line := _line(list(toward.values()), [at[s] for s in toward]):
                    rows.append((TARGETS[direction], method, event, name, *line))
                    best[event, name].append(line[5])
    if not rows:
        return []
    return [Summary("Does the law explain the steering?", tuple(_findings(best)), (Table("explained", "What tells a sample that flips, or breaks", COLUMNS, tuple(rows)),))]


def predictors(diagnostics: Sequence[Mapping]) -> dict[str, dict[str, float]]:
    """Each predictor's value of each test sample, averaged over its forms, measured on the prompt without instruction."""
    names = {"dH_rel": "relative uncertainty of the target", "R_V": "MCR of the target", "confidence": "confidence"}
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names.values()}
    for r in diagnostics:
        value = r.get("value")
        if r.get("metric") in names and r.get("split") == "test" and r.get("prompt", "base") == "base" and value is not None and np.isfinite(value):
            found[names[r["metric"]]][r["sample"]].append(value)
    return {name: {s: float(np.mean(v)) for s, v in samples.items()} for name, samples in found.items() if samples}


def _toward(name: str, value: float, direction: str) -> float:
    """A predictor as the target modality's: dH_rel is the text's uncertainty less the image's, R_V the image's share."""
    if name.startswith("relative"):
        return value if direction == "text" else -value
    return 1 - value if name.startswith("MCR") and direction == "text" else value


def _swept(predictions: Sequence[Mapping]) -> list[tuple[str, str, list[Mapping]]]:
    runs: dict[tuple[str, str], list[Mapping]] = defaultdict(list)
    for p in predictions:
        if p["split"] == "test" and p["strength"] is not None and not is_oracle(p["method"]):
            runs[p["direction"], p["method"]].append(p)
    return [(*key, rows) for key, rows in runs.items()]


def first_strengths(runs: Sequence[Mapping], base: Mapping[str, str], event: str) -> dict[str, float]:
    """The least strength at which each sample that can ``event`` does so; infinity where none does it."""
    at = {s: np.inf for s, outcome in base.items() if outcome in EVENTS[event]}
    for p in runs:
        if p["sample"] in at and p["outcome"] == MEANT[event]:
            at[p["sample"]] = min(at[p["sample"]], abs(p["strength"]))
    return at


def _line(predictor: Sequence[float], at: Sequence[float]) -> tuple | None:
    x, y = np.array(predictor, float), np.array(at, float)
    happens = np.isfinite(y)
    if min(happens.sum(), (~happens).sum()) < FEWEST:
        return None
    rho = interval(bootstrap(lambda i: spearman(x[i], y[i]), range(len(x)), DRAWS)) or (None, None)
    area = interval(bootstrap(lambda i: auroc(x[i], happens[i]), range(len(x)), DRAWS)) or (None, None)
    rank = spearman(x, y)
    return len(x), int(happens.sum()), rank if np.isfinite(rank) else None, *rho, auroc(x, happens), *area


def _findings(areas: Mapping[tuple[str, str], Sequence[float]]) -> list[Finding]:
    """Per event, each predictor's mean AUROC over methods and directions, the most telling first."""
    out = []
    for event in EVENTS:
        mean = {name: float(np.mean(found)) for (e, name), found in areas.items() if e == event}
        if mean:
            order = sorted(mean, key=lambda name, mean=mean: -abs(mean[name] - 0.5))
            said = ", ".join(f"{name} {mean[name]:.2f}" for name in order)
            out.append(Finding(f"what tells a sample that {event}: mean AUROC over methods and directions: {said}", values={name: mean[name] for name in order}))
    return out
