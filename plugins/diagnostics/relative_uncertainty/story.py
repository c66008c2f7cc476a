"""What the rows of relative uncertainty say: the curve and its balance point, its monotony, and the oscillations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.diagnose.summary import Finding, Predictor, Summary, Table
from factory.statistics.association import bootstrap, interval, spearman

from .cases import Cases, gather
from .curve import balance_point, bins, isotonic_crossing
from .figures import curve_figure, map_figure

TITLE = "Relative uncertainty and inherent preference"
FEWEST = 10  # conflicts below which no curve is fitted


def predictors(sources: Sources) -> tuple[Predictor, ...]:
    """dH_rel, which is the second source's uncertainty less the first's, and the confidence."""
    toward = lambda dH, to: dH if to == sources.second.name else -dH
    return Predictor("dH_rel", "relative uncertainty of the target", toward), Predictor("confidence", "confidence")


def tell(
    rows: Sequence[Mapping[str, Any]],
    ambiguous: float,
    n_bins: int,
    draws: int,
    seed: int,
    sources: Sources = PICTURE_AND_TEXT,
) -> Summary:
    """Findings, tables and figures from tidy rows."""
    kinds, side = gather(rows, sources), "modality" if sources.pictured else "text"
    everything, known = kinds.get("conflict", (0, None))
    findings = [
        Finding(
            f"{0 if known is None else len(known)} of {everything} conflicts are answered right from either {side}"
            " alone; they are what follows is about"
        )
    ]
    tables, figures = [], []
    curve = known.where(np.isfinite(known.text)) if known is not None else None
    if curve is not None and len(curve) >= FEWEST and 0 < curve.text.mean() < 1:
        boot = partial(_boot, clusters=curve.samples, draws=draws, seed=seed)
        balance, found = _balance(curve, boot, sources)
        findings += [*_monotony(curve, boot, n_bins, sources), found]
        tables.append(_curve_table(curve, n_bins, boot, sources))
        figures += [curve_figure(curve, tables[0], balance, sources), map_figure(curve, n_bins, sources)]
        if np.isfinite(balance):
            table, finding = _oscillations(curve, balance, ambiguous, boot)
            tables.append(table)
            findings.append(finding)
    else:
        findings.append(
            Finding(f"too few of them follow one or the other {side} for a curve: the balance point is unknown")
        )
    findings += [_control(kind, *kinds[kind], sources) for kind in sorted(kinds) if kind != "conflict"]
    return Summary(TITLE, tuple(findings), tuple(tables), tuple(figures), predictors=predictors(sources))


def _boot(statistic: Callable[[np.ndarray], float], clusters: np.ndarray, draws: int, seed: int) -> np.ndarray:
    return bootstrap(statistic, clusters.tolist(), draws, seed)


def _text(value: float, ci: tuple[float, float] | None) -> str:
    return f"{value:.2f} [{ci[0]:.2f}, {ci[1]:.2f}]" if ci else f"{value:.2f} [no interval]"


def _balance(c: Cases, boot: Callable, sources: Sources) -> tuple[float, Finding]:
    point, crossing = balance_point(c.x, c.text), isotonic_crossing(c.x, c.text)
    drawn = boot(lambda i: balance_point(c.x[i], c.text[i]))
    ci, none = interval(drawn), float(np.mean(~np.isfinite(drawn)))
    values = {
        "balance": _or_none(point),
        "interval": ci,
        "isotonic": _or_none(crossing),
        "none_in_range": none,
        "range": [float(c.x.min()), float(c.x.max())],
    }
    if not np.isfinite(point):
        side = sources.names[bool(c.text.mean() > 0.5)]
        return point, Finding(
            f"balance point: none in range [{c.x.min():.2f}, {c.x.max():.2f}]; the model follows {side} throughout"
            f" ({c.text.mean():.0%} {sources.second.name})",
            values=values,
        )
    clear = ci is not None and ci[0] * ci[1] > 0
    leans = f"the model leans to {sources.names[point > 0]}" if clear else "no clear inherent preference"
    also = f"; isotonic crossing {crossing:.2f}" if np.isfinite(crossing) else ""
    rare = f"; none in range in {none:.0%} of the resamples" if none else ""
    return point, Finding(f"balance point {_text(point, ci)}: {leans}{also}{rare}", values=values)


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _monotony(c: Cases, boot: Callable, n_bins: int, sources: Sources) -> list[Finding]:
    rho = spearman(c.x, c.text)
    ci = interval(boot(lambda i: spearman(c.x[i], c.text[i])))
    number = bins(c.x, n_bins)
    share = [c.text[number == b].mean() for b in range(number.max() + 1)]
    falls = sum(bool(b <= a) for a, b in pairwise(share))
    law = Finding(
        f"P({sources.second.name}) falls as {sources.second.said} grows relatively uncertain: rank correlation"
        f" {_text(rho, ci)}; {falls} of {len(share) - 1} steps between bins do not rise",
        ci is not None and ci[1] < 0,
        {"spearman": _or_none(rho), "interval": ci, "falling_steps": falls, "steps": len(share) - 1},
    )
    halves = [c.total <= np.median(c.total), c.total > np.median(c.total)]
    found = [spearman(c.x[h], c.text[h]) for h in halves]
    drawn = [interval(boot(lambda i, h=h: spearman(c.x[i][h[i]], c.text[i][h[i]]))) for h in halves]
    both = Finding(
        f"it does so among conflicts of low and of high total entropy: rank correlations {_text(found[0], drawn[0])}"
        f" and {_text(found[1], drawn[1])}",
        all(ci[1] < 0 for ci in known) if len(known := [ci for ci in drawn if ci]) == len(drawn) else None,
        {"low": _or_none(found[0]), "high": _or_none(found[1]), "intervals": drawn},
    )
    return [law, both]


def _curve_table(c: Cases, n_bins: int, boot: Callable, sources: Sources) -> Table:
    number, rows = bins(c.x, n_bins), []
    for b in range(number.max() + 1):
        mine = number == b
        ci = interval(boot(lambda i, mine=mine: float(c.text[i][mine[i]].mean()) if mine[i].any() else np.nan)) or (
            None,
            None,
        )
        rows.append(
            (float(c.x[mine].mean()), int(mine.sum()), float(c.text[mine].mean()), *ci, float(c.switches[mine].mean()))
        )
    return Table(
        "following_curve",
        f"Following {sources.second.said} by relative uncertainty",
        ("mean dH_rel", "prompts", f"follow {sources.second.name}", "low", "high", "oscillations"),
        tuple(rows),
    )


def _oscillations(c: Cases, balance: float, width: float, boot: Callable) -> tuple[Table, Finding]:
    near = np.abs(c.x - balance) <= width
    rows = [
        (
            name,
            int(m.sum()),
            float(c.switches[m].mean()) if m.any() else None,
            float(np.abs(c.difference[m, -1]).mean()) if m.any() else None,
        )
        for name, m in (("ambiguous", near), ("clear", ~near))
    ]
    table = Table(
        "oscillations",
        f"Layer-wise oscillations; ambiguous: within {width:g} of the balance point",
        ("region", "prompts", "mean oscillations", "mean |last logit difference|"),
        tuple(rows),
    )
    if not near.any() or near.all():
        return table, Finding(
            "all conflicts lie on one side of the ambiguous region's border: oscillations cannot be compared"
        )

    def gap(i: np.ndarray) -> float:
        return (
            float(c.switches[i][near[i]].mean() - c.switches[i][~near[i]].mean())
            if near[i].any() and not near[i].all()
            else np.nan
        )

    everything = np.arange(len(c))
    value, ci = gap(everything), interval(boot(gap))
    text = (
        f"layers switch between the answers {rows[0][2]:.2f} times in the ambiguous region and {rows[1][2]:.2f} times"
        f" outside: difference {_text(value, ci)}"
    )
    return table, Finding(
        text, ci is not None and ci[0] > 0, {"difference": value, "interval": ci, "ambiguous_share": float(near.mean())}
    )


def _control(kind: str, n: int, c: Cases, sources: Sources) -> Finding:
    decided = c.text[np.isfinite(c.text)]
    follow = f"{decided.mean():.0%} follow {sources.second.said}" if len(decided) else "none follows either"
    values = {
        "prompts": n,
        "oscillations": float(c.switches.mean()),
        "follow_text": float(decided.mean()) if len(decided) else None,
    }
    return Finding(
        f"control '{kind}': {n} prompts without a conflict; {follow}, and layers switch {c.switches.mean():.2f} times",
        values=values,
    )
